"""An encoder of the timm library, without its classifier."""

from __future__ import annotations

import pickle
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tenfold.errors import DataError, did_you_mean
from tenfold.models.encoder import Encoder


class TimmEncoder(Encoder):
    """A timm model's pooled features; images in [0, 1] are scaled as the model's own settings say."""

    def __init__(self, name: str) -> None:
        """Build the network with fresh weights; nothing is ever downloaded.

        Raises:
            DataError: timm has no such model.
        """
        import timm

        super().__init__()
        if not timm.is_model(name):
            raise DataError(f"timm {timm.__version__} has no model '{name}'{did_you_mean(name, timm.list_models())}")
        self.network = timm.create_model(name, pretrained=False, num_classes=0)
        self.features = cast(int, self.network.num_features)
        settings = cast(dict[str, Any], self.network.default_cfg)
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings["std"]).view(1, 3, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, features) of images (N, 3, H, W)."""
        pooled: Tensor = self.network((x - self.mean) / self.std)
        return pooled

    def load_weights(self, path: Path) -> None:
        """Read the weights from a ``.safetensors`` file, or a pickle of tensors alone; a classifier is left out.

        Raises:
            DataError: the file holds something else, or weights of another network.
        """
        state = read_tensors(path)
        classifier = self.network.default_cfg.get("classifier", ())  # type: ignore[union-attr, operator]
        roots = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(roots)}
        mine = self.network.state_dict()
        missing, foreign = sorted(set(mine) - set(state)), sorted(set(state) - set(mine))
        if missing or foreign:
            what = f"lacks {missing[0]}" if missing else f"holds {foreign[0]}"
            raise DataError(f"{path} {what}: it is of another network than the one named, or its names have a prefix")
        for name, tensor in state.items():
            if tensor.shape != mine[name].shape:
                found, needed = tuple(tensor.shape), tuple(mine[name].shape)
                raise DataError(f"{path}: {name} has the shape {found}, and the network needs {needed}")
            if mine[name].is_floating_point() and not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
                raise DataError(f"{path}: {name} holds values that are no finite numbers")
        self.network.load_state_dict(state)


def read_tensors(path: Path, *, average: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of a pickle that holds nothing but such and plain values.

    Args:
        path: the file.
        average: the moving average's, where a training script kept both (``model_ema``).

    Raises:
        DataError: it holds something else, or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        safe = path.suffix == ".safetensors"
        # a training script's arguments may lie beside the weights; of sparse tensors, refused below, torch warns
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings(action="ignore"):
            state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, IndexError):
        raise DataError(
            f"{path} holds no tensors that can be read safely; save the model's state_dict as .safetensors"
        ) from None
    for key in ("model_ema",) if average else ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
        elif average:
            raise DataError(f"{path} holds no moving average of the weights (model_ema); leave --average out")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise DataError(f"{path} holds no mapping of names to tensors")
    odd = sorted(name for name, tensor in state.items() if tensor.layout != torch.strided)
    if odd:
        raise DataError(f"{path}: {odd[0]} is no ordinary tensor ({state[odd[0]].layout})")
    return cast(dict[str, Tensor], state)
