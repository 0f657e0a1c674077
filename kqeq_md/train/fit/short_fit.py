"""The short range, and the level of chi, from what the charges leave of energies, forces and virials: one linear
solution, exact at the final charges.

The level (chi + c leaves charges alone and moves E by c Q) shows only where the total charge does not follow from the
composition of the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.charge_response import ACCURACY, TIGHT
from kqeq_md.train.fit.design import Batch, ForceDesign, Progress, force_design, make_batch
from kqeq_md.train.fit.joint import add_blocks, given, with_constants
from kqeq_md.train.fit.molecules import for_each
from kqeq_md.train.fit.normal_equations import NormalEquations
from kqeq_md.train.fit.rows import Block, FrameRows, virial_label
from kqeq_md.train.fit.unknowns import SHORT, Unknowns


@dataclass(frozen=True)
class ShortFit:
    """The problem.

    Attributes:
        unknowns: whose column of the short range is fitted.
        fit: standard deviations.
        descriptor: power spectrum of the model.
        batches: frames that are handled together.
        progress: shown over the batches.
    """

    unknowns: Unknowns
    fit: Fit
    descriptor: Descriptor
    batches: Sequence[Sequence[Frame]]
    progress: Progress

    def models(self, charged: Model, prior: Floats, level_prior: float) -> tuple[Model, Model]:
        """`charged` with the short range on top of its charges, and the same short range fitted without any charges.

        Args:
            charged: with electronegativities and reference charges, and no weights of the short range.
            prior: of the short range, shape (unknowns.width,).
            level_prior: of the level of chi, eV/e; 0 where it cannot be told.
        """
        width = self.unknowns.width
        with_charges, alone = NormalEquations(width + 1), NormalEquations(width)
        parts = (
            (Potential(charged, ACCURACY, TIGHT, threads=1), with_charges),
            (Potential(self.unknowns.start, threads=1, part="short"), alone),
        )
        for frames in self.progress(self.batches, "short range"):
            batch = make_batch(frames, self.descriptor, charged.cutoff, charged.numbers)
            kernel = with_constants(self.unknowns, batch)
            (design,) = force_design(batch, self.descriptor, self.unknowns.basis, [np.ones(len(batch.species))])
            for potential, equations in parts:
                blocks = self._blocks(potential, batch, kernel, design, level=equations is with_charges)
                add_blocks(equations, blocks, np.zeros(width + (equations is with_charges)))
        solution = with_charges.solve(np.append(prior, level_prior or 1e-9))
        model = self.unknowns.with_column(charged, SHORT, solution[:width])
        shift = solution[-1] if level_prior else 0.0
        model = replace(model, electronegativity_offset=model.electronegativity_offset + shift)
        return model, self.unknowns.with_column(self.unknowns.start, SHORT, alone.solve(prior))

    def _blocks(
        self, potential: Potential, batch: Batch, kernel: Floats, design: ForceDesign, level: bool
    ) -> list[Block]:
        results = for_each(potential, batch.frames, lambda own, frame: own.compute(frame.structure))
        out = []
        for f, (frame, result) in enumerate(zip(batch.frames, results, strict=True)):
            rows, atoms = FrameRows(self.fit, frame), batch.atoms(f)
            if frame.energy is not None:
                row = self._padded(kernel[atoms].sum(axis=0)[None], frame.structure.charge, level)
                out.append(rows.energy(row[0], frame.energy - result.energy))
            if frame.forces is not None:
                forces = self._padded(design.forces[3 * atoms.start : 3 * atoms.stop], 0.0, level)
                out.append(rows.forces(forces, frame.forces - given(result.forces)))
            if frame.stress is not None and result.virial is not None:
                virial = self._padded(design.virials[f], 0.0, level)
                out.append(rows.virial(virial, virial_label(frame) - result.virial))
        return out

    def _padded(self, rows: Floats, charge: float, level: bool) -> Floats:
        """With zeros for constants that are missing, and the column of the level."""
        missing = self.unknowns.width - rows.shape[1]
        parts = [rows, np.zeros((len(rows), missing))]
        if level:
            parts.append(np.full((len(rows), 1), charge))
        return np.concatenate(parts, axis=1)
