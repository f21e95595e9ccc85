"""How a network is kept: ``model.safetensors`` for the weights, ``model.json`` for what they belong to.

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tenfold.config import Description, ResNetConfig, TimmConfig, ViTConfig
from tenfold.errors import DataError, first_fault
from tenfold.fingerprint import canonical_json, digest, file_digest
from tenfold.models.encoder import Encoder
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.resnet import ResNet
from tenfold.models.timm_encoder import TimmEncoder
from tenfold.ranks import rank, whole
from tenfold.storage import open_store

if TYPE_CHECKING:
    from tenfold.models.mae import MaskedAutoencoder

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

#: What pretraining yields: an encoder, and what it was trained with.
Pretrained: TypeAlias = Union[SimCLRModel, "MaskedAutoencoder"]


def build_encoder(network: ResNetConfig | ViTConfig | TimmConfig, channels: int = 3, image_size: int = 224) -> Encoder:
    """Return a fresh encoder of images with that many channels; timm's take three, transformers one ``image_size``.

    Raises:
        DataError: timm has no such network, or images are no whole patches.
    """
    if isinstance(network, TimmConfig):
        return TimmEncoder(network.timm)
    if isinstance(network, ViTConfig):
        from tenfold.models.vit import ViT  # timm takes a second to load

        if image_size % network.patch:
            raise DataError(f"images of side {image_size} are no whole patches of {network.patch} pixels")
        return ViT(**network.model_dump(), channels=channels, image_size=image_size)
    return ResNet(**network.model_dump(), channels=channels)


def build(description: Description) -> Pretrained | Classifier:
    """Return a fresh network of that description.

    Raises:
        DataError: it lacks something, or its parts do not fit each other.
    """
    encoder = build_encoder(description.network, description.channels, description.image_size)
    if description.kind == "mae":
        from tenfold.models.mae import MaskedAutoencoder
        from tenfold.models.vit import ViT

        if not isinstance(encoder, ViT) or description.decoder is None:
            raise DataError("the description of a masked autoencoder lacks its transformer or its decoder")
        return MaskedAutoencoder(encoder, **description.decoder.model_dump())
    head = None
    if description.head is not None:
        head = ProjectionHead(encoder.features, **description.head.model_dump())
    if description.kind == "simclr":
        if head is None:
            raise DataError("the description of a pretrained encoder lacks its projection head")
        return SimCLRModel(encoder, head)
    if head is not None and description.layer > len(head.layers):
        raise DataError(f"from_head_layer={description.layer}, but the projection head has {len(head.layers)} layers")
    layer = description.layer if head is not None else 0
    return Classifier(encoder, head, layer, len(description.classes), description.feature_norm)


def save(folder: Path, model: nn.Module, description: Description) -> None:
    """Write the network into ``folder``; all ranks must ask, and the first alone writes."""
    weights = {name: whole(tensor).detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS)
    description = description.model_copy(update={"weights": file_digest(folder / WEIGHTS)})
    description = description.model_copy(update={"checksum": _checksum(description.model_dump_json())})
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=1))


def load(folder: Path) -> tuple[Pretrained | Classifier, Description]:
    """Read a network, in evaluation mode on the CPU.

    Raises:
        DataError: the folder holds none, or the weights and the description do not belong together.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no tenfold model: {name} is missing")
    try:
        description = Description.model_validate_json((folder / DESCRIPTION).read_bytes())
        if description.weights != file_digest(folder / WEIGHTS):
            raise DataError(f"the weights in {folder} are not those that {DESCRIPTION} names; fetch them again")
        if description.checksum not in (None, _checksum((folder / DESCRIPTION).read_text())):  # None: of an old version
            raise DataError(f"{DESCRIPTION} in {folder} was changed after it was written; fetch it again")
        with torch.device("cpu" if isinstance(description.network, TimmConfig) else "meta"):
            model = build(description)
        model.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    except ValidationError as error:
        raise DataError(f"the model in {folder} is damaged: {DESCRIPTION}: {first_fault(error.errors())}") from None
    except SafetensorError as error:
        raise DataError(f"the model in {folder} is damaged: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:
        told = " ".join(str(error).split())[:300]
        raise DataError(f"the weights in {folder} do not fit their description: {told}") from None
    model.eval()
    return model, description


def _checksum(text: str) -> str:
    """Return the digest of all that a description says but this one, whatever the order and the layout."""
    return digest(canonical_json({name: value for name, value in json.loads(text).items() if name != "checksum"}))


def load_kept(address: str, name: str, cache: Path) -> tuple[Pretrained, Description]:
    """Fetch and read an encoder that is kept in a folder or a store.

    Args:
        address: folder or ``s3://`` prefix with both files.
        name: sha256 of its description, as preflight saw it.
        cache: folder for what is fetched.

    Raises:
        DataError: it is another one by now, it is damaged, or it is a classifier.
    """
    store, folder = open_store(address), cache / (name or "unknown")
    if digest(store.read(DESCRIPTION).decode()) != name:
        raise DataError(f"the encoder in {address} is another than preflight saw; run again")
    # several processes fetch at once: each file comes whole under its name, and what is there stays
    described, weights = store.fetch(DESCRIPTION, folder), store.fetch(WEIGHTS, folder)
    try:
        model, known = load(described.parent)
    except DataError as error:
        if weights.is_relative_to(folder):
            weights.unlink(missing_ok=True)
        raise DataError(f"the encoder in {address} cannot be used: {error}") from None
    if isinstance(model, Classifier):
        raise DataError(f"{address} holds a classifier; an encoder is needed")
    return model, known


def build_pretrained(description: Description) -> Pretrained:
    """Return a fresh network of a description that is no classifier's."""
    model = build(description)
    assert not isinstance(model, Classifier)
    return model


def load_pretrained(folder: Path) -> tuple[Pretrained, Description]:
    """Read a network that must be what pretraining yields, not a classifier."""
    model, description = load(folder)
    if isinstance(model, Classifier):
        raise DataError(f"{folder} holds a classifier, not a pretrained encoder")
    return model, description


def load_classifier(folder: Path) -> tuple[Classifier, Description]:
    """Read a network that must be a classifier."""
    model, description = load(folder)
    if not isinstance(model, Classifier):
        raise DataError(f"{folder} holds a pretrained encoder, not a classifier")
    return model, description
