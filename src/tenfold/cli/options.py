"""Options that several commands have, and what they print to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Annotated

import typer
import yaml
from rich.console import Console

from tenfold.components.preflight.stage import Request
from tenfold.errors import ConfigError

Preset = Annotated[str | None, typer.Option(help="Preset to start from; see `tenfold presets`.")]
File = Annotated[Path | None, typer.Option("--config", help="YAML file; a key `preset` in it names its base.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One value, as section.key=value; may be repeated.")]


def console_on(file: IO[str]) -> Console:
    """Return a console that, where nobody watches, breaks no line that a program may read."""
    return Console(file=file, width=None if file.isatty() else 140, soft_wrap=not file.isatty())


console, errors = console_on(sys.stdout), console_on(sys.stderr)


def request(preset: str | None, file: Path | None, sets: list[str] | None) -> Request:
    """Put the options into the form's terms: a preset and a YAML mapping on top of it.

    Raises:
        ConfigError: both a preset and a file, or a file that cannot be read.
    """
    from tenfold.config import compose

    if preset and file:
        raise ConfigError("give --preset or --config, not both; a file may name its base with the key `preset`")
    base, values = compose(preset, file, "", sets or [])
    if base is None and file is None:
        base = "digits"
    return Request(base or "", yaml.safe_dump(values, allow_unicode=True) if values else "", {})
