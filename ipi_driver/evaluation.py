"""From structures to answers: a potential for each replica, and what goes to i-PI as extras."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from kqeq_md.ase import NO_FIELD, structure_from_atoms
from kqeq_md.ipi_driver.protocol import Answer, DriverError, Request, answer_from
from kqeq_md.ipi_driver.settings import Settings, read_settings
from kqeq_md.limits import Watch
from kqeq_md.machine.threads import in_parallel, worthwhile
from kqeq_md.model import Model
from kqeq_md.options import fragments_of, template_in
from kqeq_md.potential import NO_SUCH_CHARGES, NO_VIRIAL, Potential
from kqeq_md.response import compute_with_response
from kqeq_md.structure import Floats, Structure

logger = logging.getLogger("kqeq_md.ipi_driver")

IN_PARAMETERS, ON_COMMAND_LINE = "in <parameters>", "on the command line"


class Evaluation:
    """Answers requests that differ in positions and cell; all else is the template's and the settings'.

    It is ready at once: the template is evaluated, so that kernels are compiled and warnings said.

    Args:
        model: the model.
        atoms: elements in i-PI's order, boundary, molecule numbers.
        settings: what is computed.
        threads: as for `Potential`.

    Raises:
        KqeqError: the template, the settings, or both together are refused.
    """

    def __init__(self, model: Model, atoms: Atoms, settings: Settings, threads: int | None = None) -> None:
        self._model, self._atoms, self._settings, self._wanted_threads = model, atoms, settings, threads
        self.template = structure_from_atoms(
            template_in(atoms, settings.pbc, cell_follows=True), settings.charge or 0.0, settings.efield or NO_FIELD
        )
        self._potentials = [
            Potential(
                model,
                charges=settings.charges,
                fragments=fragments_of(settings.fragments, atoms),
                fragment_charges=settings.fragment_charges,
                threads=threads,
                part=settings.part or "all",
            )
        ]
        self.extras: tuple[str, ...] = ()
        self._watch = Watch(settings.extrapolation or "warn", self._potentials[0].largest_measure)
        self._asked_of_cell = settings.pbc is not None or self.template.boundary != "open"
        self._rehearse()

    def __len__(self) -> int:
        """Atoms of each structure."""
        return len(self.template)

    def with_parameters(self, parameters: Mapping[str, str]) -> Evaluation:
        """One that takes the `<parameters>` of the ffsocket too: itself where they say nothing new.

        Raises:
            KqeqError: parameters that are unknown, contradict the settings, or are refused.
        """
        theirs = read_settings(parameters, "`<parameters>`")
        settings = self._settings.joined(theirs, ON_COMMAND_LINE, IN_PARAMETERS)
        if settings == self._settings:
            return self
        return Evaluation(self._model, self._atoms, settings, self._wanted_threads)

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer for each structure; the place in the list is the replica.

        Raises:
            KqeqError: a structure, the field or a result is refused, or atoms extrapolate and that is to stop the run.
        """
        if not self._asked_of_cell:
            self._ask_of_cell(requests[0])
        # i-PI fills an incomplete batch with copies of its last structure
        alone = len(requests)
        while alone > 1 and _same(requests[alone - 2], requests[alone - 1]):
            alone -= 1
        answers = self._evaluate(requests[:alone])
        return answers + answers[-1:] * (len(requests) - alone)

    def _evaluate(self, requests: Sequence[Request]) -> list[Answer]:
        first = self._potentials[0]
        while len(self._potentials) < len(requests):
            self._potentials.append(first.twin())
        due = self._watch.due()
        # many structures, or small ones, are shared among the threads; few large ones share all threads each
        shared = len(requests) >= first.threads or worthwhile(first.threads, len(self)) == 1
        pairs = list(zip(self._potentials, requests, strict=False))
        found = in_parallel(lambda pair: self._answer(*pair, due), pairs, first.threads if shared else 1)
        for _, measure in found:
            if due and measure is not None:
                self._watch.look(measure)
        return [answer for answer, _ in found]

    def _answer(self, potential: Potential, request: Request, due: bool) -> tuple[Answer, Floats | None]:
        """The answer, and the measure of extrapolation where it is due or wanted."""
        structure = self._structure(request)
        born_charges = measure = None
        if "bec" in self.extras:
            result, answer = compute_with_response(potential, structure)
            born_charges = answer.born_charges
        else:
            result = potential.compute(structure)
        if due or "extrapolation" in self.extras:
            measure = potential.extrapolation(structure, result=result)
        return answer_from(result, self.extras, born_charges, measure), measure

    def _structure(self, request: Request) -> Structure:
        # i-PI sends a cell even where the boundaries are open
        return self.template.moved(request.positions, None if self.template.boundary == "open" else request.cell)

    def _ask_of_cell(self, request: Request) -> None:
        """Warn once of open boundaries where i-PI's cell fits like that of a crystal."""
        self._asked_of_cell = True
        vacuum = _vacuum(request)
        if vacuum < self._model.cutoff:
            logger.warning(
                "boundary: open, as the template has no periodic cell, but in i-PI's cell atoms come within %.1f "
                "Angstrom of their images: --pbc makes it periodic, --no-pbc says that open is meant",
                vacuum,
            )

    def _rehearse(self) -> None:
        """Decide on the extras, and evaluate the template: i-PI stalls on a driver that is connected but not ready."""
        potential = self._potentials[0].twin()  # so that the first step starts from nothing, as in any other engine
        result = potential.compute(self.template)
        logger.info(
            "%d atoms, boundary: %s, charge %g e, part: %s",
            len(self),
            self.template.boundary,
            self.template.charge,
            potential.part,
        )
        self._choose_extras(potential.has_charges, result.dipole is not None)
        if "bec" in self.extras:
            compute_with_response(potential, self.template)
        if result.virial is None:
            logger.warning("%s: i-PI gets nan, and the cell has to stay", NO_VIRIAL)

    def _choose_extras(self, has_charges: bool, has_dipole: bool) -> None:
        """Those that were asked for, or dipole and charges where they have a meaning."""
        short = self._potentials[0].part == "short"
        if has_charges:
            reason = "it has no meaning for a cell whose charges flow freely"
        else:
            reason = 'E_short knows no charges (part "short")' if short else NO_SUCH_CHARGES
        defined = {"charges": has_charges, "dipole": has_dipole, "bec": has_dipole, "extrapolation": True}
        asked = self._settings.extras
        if asked is None:
            self.extras = tuple(name for name in ("dipole", "charges") if defined[name])
            if not has_charges and not short:
                logger.warning("%s", NO_SUCH_CHARGES)
            elif not has_dipole and not short:
                logger.warning("no dipole in the extras: %s", reason)
            return
        for name in asked:
            if not defined[name]:
                raise DriverError(f"`extras` must be defined, got `{name}`: {reason}")
        self.extras = asked


def _same(one: Request, other: Request) -> bool:
    return np.array_equal(one.positions, other.positions) and np.array_equal(one.cell, other.cell)


def _vacuum(request: Request) -> float:
    """Least distance between the slab of the atoms and its next image along a cell vector, Angstrom."""
    volume = abs(np.linalg.det(request.cell))
    if volume == 0.0:
        return np.inf
    reciprocal = np.linalg.inv(request.cell)  # columns are normals of the faces, 1/height long
    heights = 1.0 / np.linalg.norm(reciprocal, axis=0)
    return float((heights * (1.0 - np.ptp(request.positions @ reciprocal, axis=0))).min())
