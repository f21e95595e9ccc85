"""The device that a stage computes on."""

from __future__ import annotations

import os

import torch

from tenfold.environment import Environment
from tenfold.errors import ConfigError
from tenfold.progress import count


def prepare(environment: Environment) -> torch.device:
    """Set the number of threads and return the device that was asked for; under torchrun each process has its own.

    Raises:
        ConfigError: a GPU was asked for and is not there.
    """
    torch.set_num_threads(environment.threads)
    wanted = environment.device
    seen = torch.cuda.device_count()
    if environment.gpus is not None and seen < environment.gpus:
        raise ConfigError(
            f"this task's pod was to have {count(environment.gpus, 'GPU')}, and torch sees {seen}: look whether the "
            "node runs the GPU's device plugin and a driver that fits this image's CUDA, and at the pod's limits",
            again=True,  # the next try may get another node
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("TENFOLD_DEVICE is cuda, but this process sees no GPU; check the pod's resources")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
