"""How charge may flow: everywhere (qeq), inside fragments, or over bonds (split charges).

    qeq         sum_i q_i = Q
    fragments   sum_{i in g} q_i = Q_g
    split       q_i = q0_i - sum_j p_ij, with q0_i of each atom fixed or learned and the flows p_ij of `split`

Fragments are found in the first structure and kept: a run in which bonds break goes on with the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from kqeq_md.charges.constraints import Constraint, constrain, total_charge
from kqeq_md.charges.fragments import Fragments, connected_fragments, given_fragments
from kqeq_md.errors import ChargeError
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats, Structure

CHARGE_MODELS = ("qeq", "fragments", "split")
CONNECTIVITY = "connectivity"


@dataclass(frozen=True, eq=False)
class Hold:
    """What holds the charges of one structure, in its order.

    Attributes:
        constraint: the sums that charges obey; for split charges those of q0.
        fragments: what the groups of the constraint are, None for the structure as a whole.
        reference: q0 where it is constant, e, shape (n,); None for other charge models and for learned q0.
    """

    constraint: Constraint
    fragments: Fragments | None = None
    reference: Floats | None = None


class ChargeModel:
    """One of the charge models, for one structure after the other.

    Args:
        name: "qeq", "fragments" or "split".
        fragments: "connectivity", molecule numbers or lists of atoms (`grouping`); None for "connectivity" with
            fragments, and for no fragments with split charges.
        fragment_charges: of each fragment, e; None where they are neutral, or where there is only one.
        reference_charge: fixed q0 of each element, e, shape (n_species,); None where q0 is learned.

    Raises:
        ChargeError: unknown names, or fragments for "qeq".
    """

    def __init__(
        self,
        name: str,
        fragments: str | ArrayLike | Sequence[ArrayLike] | None = None,
        fragment_charges: ArrayLike | None = None,
        reference_charge: Floats | None = None,
    ) -> None:
        if name not in CHARGE_MODELS:
            raise ChargeError(f"`charges` must be {', '.join(CHARGE_MODELS)}, got {name!r}")
        if name == "qeq" and fragments is not None:
            raise ChargeError('`fragments` need charges="fragments" or charges="split", got charges="qeq"')
        if isinstance(fragments, str) and fragments != CONNECTIVITY:
            raise ChargeError(f'`fragments` must be "{CONNECTIVITY}", molecule numbers or lists, got {fragments!r}')
        if name == "fragments" and fragments is None:
            fragments = CONNECTIVITY
        if fragment_charges is not None and fragments is None:
            raise ChargeError('`fragment_charges` need `fragments` (for example "connectivity"), got None')
        self.name, self.reference_charge = name, reference_charge
        self._wanted, self._fragment_charges = fragments, fragment_charges
        self._found: tuple[Ints, tuple[bool, ...], Fragments] | None = None

    def with_fragments(self, fragments: str | ArrayLike | Sequence[ArrayLike] | None) -> ChargeModel:
        """The same charge model with other fragments, or with such as are found anew."""
        return ChargeModel(self.name, fragments, self._fragment_charges, self.reference_charge)

    def at(self, structure: Structure, species: Ints) -> Hold:
        """What holds the charges of a structure.

        Args:
            structure: the atoms.
            species: element index of each atom, shape (n,).

        Raises:
            ChargeError: fragments or their charges that do not fit the structure.
        """
        if self._wanted is None:
            constraint, fragments = total_charge(len(structure), structure.charge), None
        else:
            fragments = self._fragments(structure)
            constraint = constrain(fragments.group, fragments.rest, structure.charge, self._fragment_charges)
        reference = None
        if self.name == "split" and self.reference_charge is not None:
            reference = constraint.enforce(self.reference_charge[species])
        return Hold(constraint, fragments, reference)

    def _fragments(self, structure: Structure) -> Fragments:
        """Those of the first structure with these atoms."""
        if self._found is not None:
            numbers, pbc, fragments = self._found
            if pbc == structure.pbc and np.array_equal(numbers, structure.numbers):
                return fragments
        if isinstance(self._wanted, str):
            fragments = connected_fragments(structure)
        else:
            assert self._wanted is not None
            fragments = given_fragments(structure, self._wanted)
        self._found = structure.numbers, structure.pbc, fragments
        return fragments


def reference_per_element(charges: Mapping[str, float], species: Sequence[str]) -> Floats:
    """q0 of each element, e, shape (n_species,); 0 for those that are not named.

    Raises:
        ChargeError: elements that the model does not know, or values that are not finite.
    """
    if not isinstance(charges, Mapping):
        raise ChargeError(f"`reference_charges` must be a charge for each of some elements, got {charges!r}")
    for symbol, value in charges.items():
        if symbol not in species:
            raise ChargeError(
                f"`reference_charges` must name elements of the model ({', '.join(species)}), got {symbol!r}"
            )
        if not isinstance(value, Real) or not np.isfinite(value):
            raise ChargeError(f"`reference_charges` must be finite numbers, got {value!r} for {symbol}")
    return np.array([float(charges.get(symbol, 0.0)) for symbol in species])
