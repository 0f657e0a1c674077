"""kqeq_md: molecular dynamics with machine-learned charge equilibration.

`Potential`, `Structure` and `Result` are loaded on first use, so that `import kqeq_md` costs nothing
where only a sub-package is wanted (LAMMPS imports one at every start).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kqeq_md.potential import Potential
    from kqeq_md.structure import Result, Structure

__version__ = "0.1.0"
__all__ = ["Potential", "Result", "Structure", "__version__"]

_HOMES = {"Potential": "potential", "Result": "structure", "Structure": "structure"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
