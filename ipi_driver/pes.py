"""A model inside i-PI's own process, or behind i-PI's own driver, without `kqeq-ipi`.

    <ffdirect name='kqeq' pbc='false'>
      <pes> custom </pes> <pes_path> (what `kqeq-ipi --pes-path` prints) </pes_path>
      <parameters> {model: nacl.kqeq, template: init.xyz, charge: 1, efield: 0 0 0.05} </parameters>
    </ffdirect>

    i-pi-py_driver -m custom -P "$(kqeq-ipi --pes-path)" -o model=nacl.kqeq,template=init.xyz -u -a ADDRESS

i-PI loads this file by its path and knows it by the two names below.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.ipi_driver.protocol import Answer, DriverError, Floats, check_atoms, request_from
from kqeq_md.ipi_driver.settings import read_settings
from kqeq_md.model import load_model
from kqeq_md.options import read_count, read_template

__DRIVER_NAME__ = "kqeq"
__DRIVER_CLASS__ = "KQEqPES"

logger = logging.getLogger("kqeq_md.ipi_driver")

Result = tuple[float, Floats, Floats, str]


class KQEqPES:
    """Energy, forces, virial and extras of structures in atomic units, as i-PI's potentials give them.

    Args:
        model: a `.kqeq` file.
        template: a structure that ASE reads: the elements in i-PI's order, and the boundary.
        threads: how many work at once; None for the environment's number.
        verbosity, verbose: i-PI's own, which mean nothing here.
        settings: charge, efield, charges, fragments, part, extras, extrapolation, pbc, slab, as the options of
            `kqeq-ipi`.

    Raises:
        KqeqError: anything that is refused.
    """

    def __init__(
        self,
        model: str = "",
        template: str = "",
        threads: int | str | None = None,
        verbosity: object = None,
        verbose: object = None,
        **settings: Any,
    ) -> None:
        for name, value in (("model", model), ("template", template)):
            if not value:
                raise DriverError(f"`{name}` must be the path of a file among the parameters of the PES, got none")
        own = read_settings(settings, "the parameters of the PES")
        self._evaluation = Evaluation(load_model(str(model)), read_template(str(template)), own, _threads(threads))

    def __call__(self, cell: ArrayLike | Sequence[ArrayLike], pos: ArrayLike | Sequence[ArrayLike]) -> Any:
        """(energy, forces (n, 3), virial (3, 3), extras) of one structure, or a list of them for lists.

        Args:
            cell: lattice vectors as the COLUMNS of a matrix, bohr, shape (3, 3), or a list of such.
            pos: bohr, shape (n, 3), or a list of such.

        Raises:
            KqeqError: a structure or a result that is refused; a run of i-PI in this process is ended before.
        """
        many = isinstance(pos, list)
        cells, positions = (cell, pos) if many else ([cell], [pos])
        try:
            answers = self._answers(cells, positions)
        except Exception as error:  # also what nobody has thought of: i-PI would wait for ever
            logger.error("error: %s", error, exc_info=not isinstance(error, KqeqError))
            _end_ipi(error)
            raise
        results = [(answer.energy, answer.forces, answer.virial, answer.extras) for answer in answers]
        return results if many else results[0]

    def _answers(self, cells: Any, positions: Any) -> list[Answer]:
        requests = []
        for cell, pos in zip(cells, positions, strict=True):
            r_nc = np.asarray(pos, dtype=np.float64).reshape(-1, 3)
            check_atoms(len(r_nc), len(self._evaluation))
            requests.append(request_from(np.asarray(cell, dtype=np.float64).reshape(3, 3), r_nc))
        return self._evaluation(requests)


def _threads(value: int | str | None) -> int | None:
    if isinstance(value, str):
        try:
            return read_count(value)
        except ValueError as error:
            raise ConfigError(f"`threads` {error}, got {value!r}") from None
    return value


def _end_ipi(error: Exception) -> None:
    """Let i-PI write RESTART and leave: an exception in its polling thread would leave it waiting for ever."""
    module = sys.modules.get("ipi.utils.softexit")
    if module is not None and module.softexit.flist:  # a run is under way in this process
        module.softexit.trigger(status="bad", message=f"kqeq_md: {error}")
