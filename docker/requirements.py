"""Print what an image installs ahead of tenfold itself, from pyproject.toml, so that code alone makes a small layer."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

#: torch, and what needs it or serves the networks alone: not needed where nothing is computed on images' views.
TORCH = {"torch", "torchvision", "torchmetrics", "timm", "nvidia-dali-cuda130", "numba"}


def requirements(project: Path, *, torch: bool) -> list[str]:
    """Return the project's requirements, all of them or those without torch."""
    told: list[str] = tomllib.loads(project.read_text())["project"]["dependencies"]
    return [each for each in told if torch or re.split(r"[<>=!~;\[ ]", each, maxsplit=1)[0] not in TORCH]


def main() -> None:
    """Print them, one a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--without-torch", action="store_true")
    options = parser.parse_args()
    print("\n".join(requirements(options.project, torch=not options.without_torch)))


if __name__ == "__main__":
    main()
