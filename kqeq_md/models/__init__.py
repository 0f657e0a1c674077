"""Models that ship with the package."""

from pathlib import Path

NACL = Path(__file__).parent / "nacl.kqeq"
"""Na and Cl, trained on GFN2-xTB clusters in three charge states (examples/train_nacl)."""
