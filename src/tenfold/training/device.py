"""The device that a stage computes on."""

from __future__ import annotations

import os

import torch

from tenfold.environment import Environment
from tenfold.errors import ConfigError


def prepare(environment: Environment) -> torch.device:
    """Set the number of threads and return the device that was asked for; under torchrun each process has its own.

    Raises:
        ConfigError: a GPU was asked for and is not there.
    """
    torch.set_num_threads(environment.threads)
    wanted = environment.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("TENFOLD_DEVICE is cuda, but this process sees no GPU; check the pod's resources")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
