"""Rows of the least-squares problem: labels less what the present model says, and how that follows the unknowns.

Every row is divided by the standard deviation of its label and multiplied by the square root of its frame's weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kqeq_md.structure import Floats, Result
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.design import VOIGT, Batch, ForceDesign
from kqeq_md.train.fit.linearised import Linearised
from kqeq_md.train.fit.unknowns import REFERENCE, SHORT, Unknowns

Block = tuple[str, Floats, Floats]
"""Quantity, rows and targets."""


@dataclass(frozen=True)
class FrameRows:
    """The labels of one frame as rows.

    Attributes:
        fit: standard deviations and targets.
        frame: with its labels.
    """

    fit: Fit
    frame: Frame

    def energy(self, row: Floats, rest: float) -> Block:
        """Of dE/dx, shape (columns,), and what is left of the energy, eV."""
        sigma = self._sigma(self.fit.sigma_energy * len(self.frame.structure))
        return "energy", row[None] / sigma, np.array([rest]) / sigma

    def forces(self, rows: Floats, rest: Floats) -> Block:
        """Of dF/dx, shape (3 n, columns), and what is left of the forces, shape (n, 3)."""
        sigma = self._sigma(self.fit.sigma_forces)
        return "forces", rows / sigma, rest.ravel() / sigma

    def virial(self, rows: Floats, rest: Floats) -> Block:
        """Of dW/dx, shape (6, columns), and what is left of the virial, shape (3, 3)."""
        sigma = self._sigma(self.fit.sigma_virial * len(self.frame.structure))
        return "virial", rows / sigma, rest[VOIGT] / sigma

    def charges(self, rows: Floats, charges: Floats) -> list[Block]:
        """Of dq/dx, shape (n, columns), and the present charges: rows of charges and of the dipole."""
        frame, out = self.frame, list[Block]()
        if frame.charges is not None and "charges" in self.fit.targets:
            sigma = self._sigma(self.fit.sigma_charges)
            out.append(("charges", rows / sigma, (frame.charges - charges) / sigma))
        if frame.dipole is not None and "dipole" in self.fit.targets:
            positions, sigma = frame.structure.positions.T, self._sigma(self.fit.sigma_dipole * len(charges))
            out.append(("dipole", positions @ rows / sigma, (frame.dipole - positions @ charges) / sigma))
        return out

    def polarizability(self, rows: Floats, value: Floats) -> Block:
        """Of dalpha/dx, shape (3, 3, columns), and the present polarizability, shape (3, 3)."""
        assert self.frame.polarizability is not None
        sigma = self._sigma(self.fit.sigma_polarizability * len(self.frame.structure))
        rest = (self.frame.polarizability - value)[VOIGT]
        return "polarizability", rows[VOIGT] / sigma, rest / sigma

    def reference(self, rows: Floats, reference: Floats) -> list[Block]:
        """Learned reference charges: near the charge labels, so that flows do not undo what they do, and with the sum
        that they should have, so that nothing is left to be spread.

        Of dy/dx, shape (n, columns), and the present y, e, shape (n,).
        """
        sigma = self._sigma(self.fit.sigma_reference)
        missing = self.frame.structure.charge - reference.sum()
        out: list[Block] = [("reference sum", rows.sum(axis=0)[None] / sigma, np.array([missing]) / sigma)]
        if self.frame.charges is not None:
            out.append(("reference charges", rows / sigma, (self.frame.charges - reference) / sigma))
        return out

    def _sigma(self, sigma: float) -> float:
        return sigma / float(np.sqrt(self.frame.weight))


def virial_label(frame: Frame) -> Floats:
    """W = -V sigma, eV, shape (3, 3)."""
    assert frame.stress is not None
    return -frame.structure.volume * frame.stress


def present_blocks(
    fit: Fit, frame: Frame, result: Result, reference: Floats | None, polarizability: Floats | None
) -> list[Block]:
    """All targets of a frame at the present model, with rows of no column; its learned reference charges, e, shape
    (n,), and polarizability, where they are known."""
    rows, n = FrameRows(fit, frame), len(frame.structure)
    out = rows.charges(np.empty((n, 0)), result.charges)
    if frame.energy is not None:
        out.append(rows.energy(np.empty(0), frame.energy - result.energy))
    if frame.forces is not None and result.forces is not None:
        out.append(rows.forces(np.empty((3 * n, 0)), frame.forces - result.forces))
    if frame.stress is not None and result.virial is not None:
        out.append(rows.virial(np.empty((6, 0)), virial_label(frame) - result.virial))
    if polarizability is not None:
        out.append(rows.polarizability(np.empty((3, 3, 0)), polarizability))
    if reference is not None:
        out += rows.reference(np.empty((n, 0)), reference)
    return out


class JointRows:
    """All rows of a batch around the present model: charges, energies and forces with everything that they follow.

    Virials follow the short range alone here: charges and electronegativities are taken as they are.

    Args:
        unknowns: the columns.
        fit: standard deviations and targets.
        batch: the frames.
        kernel: K U and constants, shape (n, unknowns.width).
        designs: of forces, in the order of `unknowns.columns`, at the present charges and reference gradients.
    """

    def __init__(
        self, unknowns: Unknowns, fit: Fit, batch: Batch, kernel: Floats, designs: Sequence[ForceDesign]
    ) -> None:
        self._unknowns, self._fit, self._batch = unknowns, fit, batch
        self._kernel, self._designs = kernel, designs

    def of(self, f: int, now: Linearised) -> list[Block]:
        """Rows of frame f of the batch, from what it is around the present model."""
        frame = self._batch.frames[f]
        rows, kernel = FrameRows(self._fit, frame), self._kernel[self._batch.atoms(f)]
        out = rows.charges(self._padded(self._by_weights(now.charges_by_input, kernel)), now.charges)
        if frame.energy is not None:
            out.append(rows.energy(self._energy(now, kernel), frame.energy - now.energy))
        if frame.forces is not None:
            out.append(rows.forces(self._forces(f, now, kernel), frame.forces - now.forces))
        if frame.stress is not None and now.virial is not None:
            out.append(rows.virial(self._virial(f), virial_label(frame) - now.virial))
        if now.polarizability is not None:
            by_x = np.zeros((3, 3, self._unknowns.size))
            by_x[..., self._unknowns.physical] = now.polarizability.by_parameter
            out.append(rows.polarizability(by_x, now.polarizability.value))
        if now.reference is not None:
            by_x = np.zeros((len(kernel), self._unknowns.size))
            by_x[:, self._unknowns.of(REFERENCE)] = kernel
            out += rows.reference(by_x, now.reference)
        return out

    def _by_weights(self, by_input: Floats, kernel: Floats) -> Floats:
        """Derivatives by (chi, y, parameters) as such by the weights, shape (..., charged + parameters)."""
        n = len(kernel)
        parts = [by_input[:, k * n : (k + 1) * n] @ kernel for k in range(len(self._unknowns.columns) - 1)]
        return np.concatenate([*parts, by_input[:, n * len(parts) :]], axis=1)

    def _padded(self, rows: Floats) -> Floats:
        """With zeros where the short range stands."""
        charged = self._unknowns.charged
        nothing = np.zeros((len(rows), self._unknowns.width))
        return np.concatenate([rows[:, :charged], nothing, rows[:, charged:]], axis=1)

    def _energy(self, now: Linearised, kernel: Floats) -> Floats:
        parts = [now.charges @ kernel]
        if now.reference_gradient is not None:
            parts.append(now.reference_gradient @ kernel)
        return np.concatenate([*parts, kernel.sum(axis=0), now.energy_by_parameter])

    def _forces(self, f: int, now: Linearised, kernel: Floats) -> Floats:
        out = self._padded(self._by_weights(now.forces_by_input, kernel))
        atoms, width, size = self._batch.atoms(f), self._unknowns.width, self._kernel_columns
        for k, design in enumerate(self._designs):  # a constant exerts no force
            out[:, k * width : k * width + size] += design.forces[3 * atoms.start : 3 * atoms.stop]
        return out

    def _virial(self, f: int) -> Floats:
        out = np.zeros((6, self._unknowns.size))
        begin = self._unknowns.of(SHORT).start
        out[:, begin : begin + self._kernel_columns] = self._designs[-1].virials[f]
        return out

    @property
    def _kernel_columns(self) -> int:
        return self._unknowns.basis.size
