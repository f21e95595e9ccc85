"""The device that a stage computes on."""

from __future__ import annotations

import torch

from tenfold.environment import Environment
from tenfold.errors import ConfigError


def prepare(environment: Environment) -> torch.device:
    """Set the number of threads and return the device that was asked for.

    Raises:
        ConfigError: a GPU was asked for and is not there.
    """
    torch.set_num_threads(environment.threads)
    wanted = environment.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("TENFOLD_DEVICE is cuda, but this process sees no GPU; check the pod's resources")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
