"""What a fit starts from: a model without weights, sparse points, and the frames that it does not see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.elements import ATOMIC_NUMBERS, COVALENT_RADII
from kqeq_md.errors import ConfigError
from kqeq_md.kernel import sparse_kernel
from kqeq_md.model import Model, SoapTerm, usual_compliance
from kqeq_md.structure import Floats
from kqeq_md.train.config import HARDNESS, WIDE_ENOUGH, Config, PerElement
from kqeq_md.train.data import Frame, species_of
from kqeq_md.train.data.composition import compositions
from kqeq_md.train.data.duplicates import find_duplicates
from kqeq_md.train.fit.design import Basis, Progress, make_batch, split_into_batches
from kqeq_md.train.fit.molecules import smallest_fragment
from kqeq_md.train.fit.sparse import farthest_points, room_for_spectra, whitening

FEWEST_FRAMES = 20
"""Of fewer frames none is held out."""


def blank_model(frames: Sequence[Frame], config: Config, atom_energies: dict[str, float] | None = None) -> Model:
    """The hyperparameters as a model whose kernels are zero, with the energies of its atoms."""
    species, charges = species_of(frames), config.charges
    zeros, radii = np.zeros(len(species)), usual_radii(species)
    compliance, cutoff = usual_compliance(species)
    widths = np.maximum(radii, WIDE_ENOUGH if charges.model == "split" else 0.0)

    def each(value: PerElement | None, usual: Floats, name: str) -> Floats:
        return np.array(per_element(value, species, usual, name))

    columns = 3 if charges.learns_reference else 2
    points, weights = np.empty((0, Descriptor.size_for(config.descriptor, len(species)))), np.empty((0, columns))
    blank = SoapTerm(config.descriptor, config.kernel.zeta, (points,) * len(species), (weights,) * len(species))
    fixed = charges.reference_charges
    return Model(
        species=species,
        terms=(blank,),
        hardness=each(charges.hardness, zeros + HARDNESS[charges.model], "charges.hardness"),
        gaussian_width=each(charges.gaussian_width, widths, "charges.gaussian_width"),
        electronegativity_offset=zeros,
        atom_energy=energies_of_atoms(frames, species, atom_energies),
        repulsion_radius=each(config.short_range.repulsion_radius, radii, "short_range.repulsion_radius"),
        reference_charge=zeros if isinstance(fixed, str) else each(fixed, zeros, "charges.reference_charges"),
        charges=charges.model,
        compliance=per_pair(charges.compliance, species, compliance),
        compliance_cutoff=per_pair(charges.compliance_cutoff, species, cutoff),
        fragment=smallest_fragment(frames),
    )


def energies_of_atoms(frames: Sequence[Frame], species: Sequence[str], given: dict[str, float] | None) -> Floats:
    """The given ones, or those that compositions tell best (least squares of energies per atom, without weights), eV,
    shape (n_species,): what the fitted constants are counted from."""
    if given is not None:
        return np.array([given[symbol] for symbol in species])
    labelled = [frame for frame in frames if frame.energy is not None]
    counts = compositions(labelled, [ATOMIC_NUMBERS[symbol] for symbol in species])
    energies = np.array([frame.energy for frame in labelled], dtype=np.float64)
    per_atom = 1.0 / counts.sum(axis=1, keepdims=True)
    out: Floats = np.linalg.lstsq(counts * per_atom, energies * per_atom[:, 0], rcond=None)[0]
    return out


def choose_basis(frames: Sequence[Frame], blank: Model, config: Config, progress: Progress) -> Basis:
    """Sparse points of every species by farthest-point sampling, and their whitening."""
    generator, descriptor = np.random.default_rng(config.seed), Descriptor(config.descriptor, len(blank.species))
    numbers = np.concatenate([frame.structure.numbers for frame in frames])
    spectra = [room_for_spectra(int((numbers == number).sum()), descriptor.size) for number in blank.numbers]
    filled = [0] * len(spectra)
    for part in progress(split_into_batches(frames), "power spectra"):
        batch = make_batch(part, descriptor, blank.cutoff, blank.numbers)
        for element, room in enumerate(spectra):
            own = batch.spectra(element)
            room[filled[element] : filled[element] + len(own)] = own
            filled[element] += len(own)
    points = tuple(farthest_points(room, config.kernel.sparse_points, generator) for room in spectra)
    return basis_of(points, config.kernel.zeta)


def basis_of(points: Sequence[Floats], zeta: int) -> Basis:
    """Sparse points with their whitening."""
    return Basis(tuple(points), tuple(whitening(sparse_kernel(p, p, zeta)) for p in points), zeta)


def held_out_places(frames: Sequence[Frame], part: float, seed: int) -> frozenset[str]:
    """Places of a random part of the frames that leaves every element in the others; none of a small set.

    Frames that have copies are not among them: one that is held out would be no stranger to the fit.
    """
    count = round(part * len(frames))
    if len(frames) < FEWEST_FRAMES or count == 0:
        return frozenset()
    order = np.random.default_rng([seed, 1]).permutation(len(frames))
    copied = {f for pair in find_duplicates([frame.structure for frame in frames]) for f in pair}
    chosen = {frames[f].place for f in order[:count] if f not in copied}
    rest = [frame for frame in frames if frame.place not in chosen]
    if set(species_of(rest)) != set(species_of(frames)):
        return frozenset()
    return frozenset(chosen)


def per_element(value: PerElement | None, species: tuple[str, ...], usual: Floats, name: str) -> list[float]:
    """One number per species; None means the usual ones."""
    if value is None:
        return list(map(float, usual))
    if not isinstance(value, dict):
        return [value] * len(species)
    missing = [symbol for symbol in species if symbol not in value]
    if missing:
        raise ConfigError(f"`{name}` must name every element of the data, {missing[0]} is missing")
    return [value[symbol] for symbol in species]


def usual_radii(species: Sequence[str]) -> Floats:
    """0.7 times the covalent radius, Angstrom, shape (n,): where repulsion begins, and how wide charges are."""
    return np.array([0.7 * COVALENT_RADII[ATOMIC_NUMBERS[symbol]] for symbol in species])


def per_pair(value: PerElement | None, species: tuple[str, ...], usual: Floats) -> Floats:
    """A number for each two species, shape (n, n); the usual ones where nothing is said."""
    out = np.full(usual.shape, value) if isinstance(value, float) else usual.copy()
    for key, entry in (value if isinstance(value, dict) else {}).items():
        if set(pair := key.split("-")) <= set(species):
            i, j = (species.index(symbol) for symbol in pair)
            out[i, j] = out[j, i] = entry
    return out
