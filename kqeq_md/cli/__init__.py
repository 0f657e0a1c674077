"""The command `kqeq`."""

from kqeq_md.cli.program import main, parser

__all__ = ["main", "parser"]
