"""How a network is kept: ``model.safetensors`` for the weights, ``model.json`` for what they belong to.

Nothing is ever unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tenfold.config import EvalViewConfig, HeadConfig, ResNetConfig, Section
from tenfold.errors import DataError
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.resnet import ResNet

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class Description(Section):
    """What a saved network is.

    Attributes:
        kind: ``simclr`` (encoder and projection head) or ``classifier``.
        network: the encoder.
        head: the projection head that the encoder was trained with; None: it never had one.
        layer: how many of the head's layers a classifier keeps.
        classes: a classifier's outputs, in order.
        image_size: side of the images that it was trained on.
        evaluation: the view that it must be shown.
    """

    kind: Literal["simclr", "classifier"]
    network: ResNetConfig
    head: HeadConfig | None = None
    layer: int = 0
    classes: list[str] = Field(default_factory=list)
    image_size: int
    evaluation: EvalViewConfig = EvalViewConfig()


def build_encoder(network: ResNetConfig) -> ResNet:
    """Return a fresh encoder."""
    return ResNet(network.depth, network.width, network.small_images, network.zero_gain)


def build(description: Description) -> SimCLRModel | Classifier:
    """Return a fresh network of that description."""
    encoder = build_encoder(description.network)
    head = None
    if description.head is not None:
        head = ProjectionHead(encoder.features, description.head.layers, description.head.features)
    if description.kind == "simclr":
        if head is None:
            raise DataError("the description of a pretrained encoder lacks its projection head")
        return SimCLRModel(encoder, head)
    if head is not None and description.layer > len(head.layers):
        raise DataError(f"from_head_layer={description.layer}, but the projection head has {len(head.layers)} layers")
    return Classifier(encoder, head, description.layer if head is not None else 0, len(description.classes))


def save(folder: Path, model: nn.Module, description: Description) -> None:
    """Write the network into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=1))


def load(folder: Path) -> tuple[SimCLRModel | Classifier, Description]:
    """Read a network, in evaluation mode on the CPU.

    Raises:
        DataError: the folder holds none, or the weights do not fit the description.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no tenfold model: {name} is missing")
    try:
        description = Description.model_validate_json((folder / DESCRIPTION).read_bytes())
        model = build(description)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (ValidationError, SafetensorError) as error:
        raise DataError(f"the model in {folder} is damaged: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:
        raise DataError(f"the weights in {folder} do not fit their description: {str(error).splitlines()[0]}") from None
    model.eval()
    return model, description


def load_classifier(folder: Path) -> tuple[Classifier, Description]:
    """Read a network that must be a classifier."""
    model, description = load(folder)
    if not isinstance(model, Classifier):
        raise DataError(f"{folder} holds a pretrained encoder, not a classifier")
    return model, description
