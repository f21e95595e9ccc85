"""The command line."""

from tenfold.cli.app import main

__all__ = ["main"]
