"""Models that ship with the package, trained on GFN2-xTB labels (examples/train_nacl, examples/train_water)."""

from pathlib import Path

NACL = Path(__file__).parent / "nacl.kqeq"
"""Na and Cl, clusters in three charge states and pieces of melt; charge flows freely."""

NACL_SPLIT = NACL.with_name("nacl_split.kqeq")
"""The same with split charges."""

WATER = NACL.with_name("water.kqeq")
"""H and O: water clusters with H3O+ and OH-, spheres of liquid; split charges."""

WATER_QEQ = NACL.with_name("water_qeq.kqeq")
"""The same with charges that flow freely."""

SHIPPED = {path.stem: path for path in (NACL, NACL_SPLIT, WATER, WATER_QEQ)}
"""All of them, by name."""
