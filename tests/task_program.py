"""Runs one task as its KFP component does, in a process of its own; the only argument is what to run, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tenfold.execution import execute


def main() -> None:
    """Call :func:`execute`."""
    what = json.loads(sys.argv[1])
    inputs = {**what["parameters"], **{name: Path(folder) for name, folder in what["artifacts"].items()}}
    execute(what["task"], what["config"], inputs, what["outputs"], room=what["room"], trains=True)


if __name__ == "__main__":
    main()
