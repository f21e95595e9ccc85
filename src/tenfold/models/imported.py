"""Networks that others trained, written as ours."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import nn

from tenfold.config import Description, HeadConfig, TimmConfig
from tenfold.models.heads import ProjectionHead, SimCLRModel
from tenfold.models.official import OfficialCheckpoint
from tenfold.models.saved import save
from tenfold.models.timm_encoder import TimmEncoder


def import_official(
    source: Path, output: Path, average: bool, from_head_layer: int | None, classes: list[str] | None, image_size: int
) -> Description:
    """Write a checkpoint of the official SimCLR repository as a network of ours; see :class:`OfficialCheckpoint`."""
    checkpoint = OfficialCheckpoint(source)
    model, description = checkpoint.load(
        average=average, from_head_layer=from_head_layer, classes=classes, image_size=image_size
    )
    _write(output, model, description)
    return description


def import_timm(source: Path, name: str, output: Path, image_size: int) -> Description:
    """Write a timm model with local weights as an encoder of ours, with no projection head."""
    encoder = TimmEncoder(name)
    encoder.load_weights(source)
    head = HeadConfig(layers=0)
    description = Description(kind="simclr", network=TimmConfig(timm=name), head=head, image_size=image_size)
    _write(output, SimCLRModel(encoder, ProjectionHead(encoder.features, 0)), description)
    return description


def _write(output: Path, model: nn.Module, description: Description) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        save(aside, model, description)
        aside.chmod(0o755)
        if output.is_dir():
            output.rmdir()
        aside.rename(output)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
