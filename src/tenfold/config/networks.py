"""Networks, and the description that is kept beside a trained one's weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tenfold.config.base import Section
from tenfold.config.views import EvalViewConfig, channels_of


class ResNetConfig(Section):
    """SimCLRv2's ResNet."""

    depth: Literal[10, 18, 34, 50, 101, 152, 200] = 18
    width: float = Field(1.0, gt=0, le=8, description="multiplier of the channel counts")
    selective_kernels: bool = Field(False, description="SK convolutions, pooled shortcuts and ResNet-D's stem")
    small_images: bool = Field(True, description="3x3 stem with stride 1 and no max-pooling")
    zero_gain: bool = Field(
        True,
        description="blocks start as the identity, as in the papers; a run of some hundred steps does better without",
    )


class ViTConfig(Section):
    """Vision transformer, as MAE and Semi-ViT have it; images must be whole patches."""

    vit: Literal["tiny", "small", "base", "large", "huge"] = Field(description="the papers' sizes; tiny is DeiT's")
    patch: int = Field(16, ge=1, le=64, description="side of a patch in pixels")
    pool: Literal["average", "token"] = Field("average", description="features: of the patches' mean, or a class token")
    positions: Literal["learned", "fixed"] = Field("learned", description="fixed: sines and cosines, never trained")
    width: int | None = Field(None, ge=4, description="of the tokens, instead of the size's; heads must divide it")
    depth: int | None = Field(None, ge=1, le=48, description="blocks, instead of the size's; 48 are ViT-G's")
    heads: int | None = Field(None, ge=1, description="of the attention, instead of the size's")

    @model_validator(mode="after")
    def _divides(self) -> ViTConfig:
        if (self.width or self.heads) and (not self.width or not self.heads):
            raise ValueError("give width and heads together")
        if self.width and self.heads and (self.width % 4 or self.width % self.heads):
            raise ValueError(f"width is {self.width}, which must be a multiple of 4 and of heads={self.heads}")
        return self


def _kind_of(network: Any) -> str:
    """Return which of the networks' tags a value, or a mapping that a user wrote, belongs to."""
    vit = network.get("vit") if isinstance(network, dict) else getattr(network, "vit", None)
    return "ResNet" if vit is None else "ViT"


#: A ResNet, or where the key ``vit`` is given a vision transformer.
Network = Annotated[Annotated[ResNetConfig, Tag("ResNet")] | Annotated[ViTConfig, Tag("ViT")], Discriminator(_kind_of)]


class TimmConfig(Section):
    """An encoder of the timm library that the user brought."""

    timm: str = Field(description="name of the model in timm")


class HeadConfig(Section):
    """The projection head: hidden layers, then a linear output layer. One layer is a linear head, 0 is none."""

    layers: int = Field(3, ge=0, le=8)
    features: int = Field(128, ge=2, description="width of the projection")
    width: int | None = Field(None, ge=2, description="of the hidden layers; the encoder's output width unless set")


class DecoderConfig(Section):
    """The transformer that draws hidden patches while a masked autoencoder is trained."""

    width: int = Field(512, ge=4, multiple_of=4)
    depth: int = Field(8, ge=1, le=64)
    heads: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> DecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, which heads={self.heads} do not divide")
        return self


class Description(Section):
    """What a saved network is.

    Attributes:
        kind: ``simclr`` (encoder and projection head), ``mae`` (encoder and decoder) or ``classifier``.
        network: the encoder.
        head: the projection head that the encoder was trained with; None: it never had one.
        decoder: of a masked autoencoder.
        layer: how many of the head's layers a classifier keeps.
        feature_norm: length that a classifier scales its features to; None: they stay as they are.
        classes: a classifier's outputs, in order.
        image_size: side of the images that it was trained on.
        evaluation: the view that it must be shown.
        trained: whether anything was trained; False of a fresh network.
        weights: sha256 of the weights' file.
        probe: pixels of the view of a fixed picture, as they were where the classifier was measured
            (:func:`tenfold.predictor.probe`); None: it was not.
        exported: sha256 of the file that ``torch.export`` made of it; None: there is none.
        checksum: sha256 of all the above.
    """

    kind: Literal["simclr", "mae", "classifier"]
    network: ResNetConfig | ViTConfig | TimmConfig
    head: HeadConfig | None = None
    decoder: DecoderConfig | None = None
    layer: int = Field(0, ge=0, le=8)
    feature_norm: float | None = Field(None, gt=0, allow_inf_nan=False)
    classes: list[str] = Field(default_factory=list)
    image_size: int = Field(ge=1, le=16_384)
    evaluation: EvalViewConfig = EvalViewConfig()
    trained: bool = True
    weights: str | None = None
    probe: list[float] | None = None
    exported: str | None = None
    checksum: str | None = None

    @model_validator(mode="after")
    def _names_each_class_once(self) -> Description:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two of its classes have one name")
        return self

    @property
    def channels(self) -> int:
        """Of the images that it takes."""
        return channels_of(self.evaluation.pixels)
