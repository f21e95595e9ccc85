"""How a benchmark's result is kept: with the command, the commit and the machine that gave it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any], commit: str) -> Path:
    """Write ``results/<name>.json`` and return its path; ``commit`` is the one at the benchmark's start."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = {"command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"), "commit": commit,
             "machine": machine()}  # fmt: skip
    path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    return path


def current_commit() -> str:
    """Return the commit that is checked out, and whether the code differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "components", "pipelines")
    return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")


def machine() -> dict[str, Any]:
    """Return what the benchmark runs on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = ("torch", "torchvision", "nvidia-dali-cuda130", "scikit-learn", "kfp", "mlflow")
    return {
        "processor": model, "capability": torch.backends.cpu.get_cpu_capability(), "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(), "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }  # fmt: skip
