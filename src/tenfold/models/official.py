"""Checkpoints of the official SimCLR repository: which of their tensors is which of ours.

TF1 names number convolutions and batch norms in the order of their making, which is the order of our
modules. TF2 names say where a layer stands in its lists. Kernels are (height, width, in, out) there and
(out, in, height, width) here; a dense layer's are (in, out) there and (out, in) here.

Of TF2 checkpoints ours were tried with ResNet-18; the names of bottleneck networks are taken from the
official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tenfold.config import Description, HeadConfig, ResNetConfig
from tenfold.errors import DataError
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.mae import MaskedAutoencoder
from tenfold.models.norm import BatchNorm
from tenfold.models.resnet import Block, ResNet
from tenfold.models.saved import build
from tenfold.models.tf_checkpoint import TFCheckpoint

#: Our name of a batch norm's tensor → TensorFlow's.
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_TF2 = "/.ATTRIBUTES/VARIABLE_VALUE"
_DEPTHS: tuple[Literal[18, 34, 50, 101, 152, 200], ...] = (18, 34, 50, 101, 152, 200)
Style = Literal["tf1", "tf2"]


class Pair(NamedTuple):
    """Our tensor's name in a state_dict, and the official one's."""

    ours: str
    theirs: str


def _layers(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, part in module.named_modules(prefix=prefix):
        if isinstance(part, nn.Conv2d | nn.Linear | BatchNorm):
            yield name, part


def _norm_pairs(ours: str, theirs: str, *, offset: bool = True) -> Iterator[Pair]:
    for mine, other in _NORM.items():
        if offset or mine != "bias":
            yield Pair(f"{ours}.{mine}", f"{theirs}/{other}")


def tf1_encoder(encoder: ResNet, prefix: str = "") -> Iterator[Pair]:
    """Yield the pairs of an encoder whose TF1 names start with ``{prefix}base_model/``."""
    convolutions = norms = 0
    for name, part in _layers(encoder, "encoder"):
        if isinstance(part, nn.Conv2d):
            number = f"_{convolutions}" if convolutions else ""
            yield Pair(f"{name}.weight", f"{prefix}base_model/conv2d{number}/kernel")
            convolutions += 1
        else:
            number = f"_{norms}" if norms else ""
            yield from _norm_pairs(name, f"{prefix}base_model/batch_normalization{number}")
            norms += 1


def tf1_head(head: ProjectionHead, prefix: str = "") -> Iterator[Pair]:
    """Yield the pairs of a projection head; the last layer's norm has no offset."""
    last = len(head.layers) - 1
    for number in range(last + 1):
        theirs = f"{prefix}head_contrastive/nl_{number}"
        yield Pair(f"head.layers.{number}.0.weight", f"{theirs}/dense/kernel")
        yield from _norm_pairs(f"head.layers.{number}.1", f"{theirs}/batch_normalization", offset=number < last)


def tf2_encoder(encoder: ResNet) -> Iterator[Pair]:
    """Yield the pairs of an encoder in a TF2 training checkpoint."""
    root, stem = "model/resnet_model", list(_layers(encoder.stem, "encoder.stem"))
    places = (0, 2) if len(stem) == 2 else (0, 1, 2, 3, 4, 6)
    for (name, part), place in zip(stem, places, strict=True):
        yield from _tf2_layer(name, part, f"{root}/initial_conv_relu_max_pool/{place}")
    for g, group in enumerate(encoder.groups):
        assert isinstance(group, nn.Sequential)
        for b, block in enumerate(group):
            assert isinstance(block, Block)
            yield from _tf2_block(block, f"encoder.groups.{g}.{b}", f"{root}/block_groups/{g}/layers/{b}")


def _tf2_layer(ours: str, part: nn.Module, theirs: str, *, wrapped: bool = True) -> Iterator[Pair]:
    if isinstance(part, BatchNorm):
        for pair in _norm_pairs(ours, f"{theirs}/bn"):
            yield Pair(pair.ours, pair.theirs + _TF2)
    else:
        yield Pair(f"{ours}.weight", f"{theirs}/conv2d/kernel{_TF2}" if wrapped else f"{theirs}/kernel{_TF2}")


def _tf2_block(block: Block, ours: str, theirs: str) -> Iterator[Pair]:
    body = list(_layers(block.body, f"{ours}.body"))
    shortcut = list(_layers(block.shortcut, f"{ours}.shortcut"))
    bottleneck, selective = len(body) > 4, len(body) > 6
    if shortcut:
        assert isinstance(block.shortcut, nn.Sequential)
        pooled = len(block.shortcut) == 3
        strided = pooled and block.shortcut.get_submodule("0").stride == 2
        start = 2 if strided else 1 if pooled else 0
        kind = "projection_layers" if bottleneck else "shortcut_layers"
        for (name, part), place in zip(shortcut, (start, start + 1), strict=True):
            yield from _tf2_layer(name, part, f"{theirs}/{kind}/{place}")
    kind = "conv_relu_dropblock_layers" if bottleneck else "conv2d_bn_layers"
    if not selective:
        places = (0, 1, 3, 4, 6, 7) if bottleneck else (0, 1, 2, 3)
        for (name, part), place in zip(body, places, strict=True):
            yield from _tf2_layer(name, part, f"{theirs}/{kind}/{place}")
        return
    root = f"{theirs}/{kind}"
    for (name, part), place in zip([*body[:2], *body[-2:]], (0, 1, 5, 6), strict=True):
        yield from _tf2_layer(name, part, f"{root}/{place}")
    inner = ("conv2d_fixed_padding", "batch_norm_relu", "conv2d_0", "batch_norm_relu_1", "conv2d_1")
    for (name, part), where in zip(body[2:-2], inner, strict=True):
        yield from _tf2_layer(name, part, f"{root}/3/{where}", wrapped=where == inner[0])


def tf2_head(head: ProjectionHead) -> Iterator[Pair]:
    """Yield the pairs of a projection head in a TF2 training checkpoint."""
    last = len(head.layers) - 1
    for number in range(last + 1):
        theirs = f"model/_projection_head/linear_layers/{number}"
        yield Pair(f"head.layers.{number}.0.weight", f"{theirs}/dense/kernel{_TF2}")
        for pair in _norm_pairs(f"head.layers.{number}.1", f"{theirs}/bn_relu/bn", offset=number < last):
            yield Pair(pair.ours, pair.theirs + _TF2)


class Imported(NamedTuple):
    """An official checkpoint as a network of ours."""

    model: SimCLRModel | Classifier
    description: Description


class OfficialCheckpoint:
    """A SimCLR or SimCLRv2 checkpoint, with what its names and shapes say about the network."""

    def __init__(self, path: Path) -> None:
        """Open it and find depth, width and kind of the network.

        Raises:
            DataError: it is damaged, or no network of the papers has these tensors.
        """
        self.file = TFCheckpoint(path)
        names = set(self.file.entries)
        self.style: Style = "tf2" if any(name.startswith("model/resnet_model/") for name in names) else "tf1"
        if self.style == "tf1" and "base_model/conv2d/kernel" not in names:
            known = ", ".join(sorted(names)[:5])
            raise DataError(f"{self.file.prefix} is no SimCLR checkpoint; its first tensors are {known or 'none'}")
        self.has_average = "ema_model/base_model/conv2d/kernel" in names
        self.network = self._network()
        self.head = self._head()
        kernel = "head_supervised/linear_layer/dense/kernel"
        self._classifier = f"model/supervised_head/linear_layer/dense/kernel{_TF2}" if self.style == "tf2" else kernel
        self.classes = self.file.shape(self._classifier)[1] if self._classifier in names else 0

    def _network(self) -> ResNetConfig:
        stem = "base_model/conv2d/kernel"
        if self.style == "tf2":
            stem = f"model/resnet_model/initial_conv_relu_max_pool/0/conv2d/kernel{_TF2}"
        shape = self.file.shape(stem) if stem in self.file.entries else ()
        if len(shape) != 4 or shape[2] != 3:
            raise DataError(f"{self.file.prefix}: the first convolution, {stem}, is missing or not one of an image's")
        mine = "model/resnet_model/" if self.style == "tf2" else "base_model/"
        names = {name for name in self.file.entries if name.startswith(mine) and "/Momentum" not in name}
        for config in _candidates(kernel=shape[0], channels=shape[3]):
            pairs = self._encoder_pairs(config)
            if {pair.theirs for pair in pairs} == names:
                self._check(pairs, config)
                return config
        raise DataError(
            f"{self.file.prefix}: its {len(names)} tensors of an encoder are those of no ResNet of the papers "
            f"(depth {', '.join(map(str, _DEPTHS))}, with or without selective kernels)"
        )

    def _encoder_pairs(self, config: ResNetConfig, average: bool = False) -> list[Pair]:
        with torch.device("meta"):
            encoder = ResNet(**config.model_dump())
        return list(tf2_encoder(encoder) if self.style == "tf2" else tf1_encoder(encoder, _prefix(average)))

    def _head_pairs(self, config: HeadConfig, average: bool = False) -> list[Pair]:
        with torch.device("meta"):
            head = ProjectionHead(8, **config.model_dump())
        return list(tf2_head(head) if self.style == "tf2" else tf1_head(head, _prefix(average)))

    def _head(self) -> HeadConfig | None:
        root = "model/_projection_head/linear_layers/{}/dense/kernel" + _TF2
        if self.style == "tf1":
            root = "head_contrastive/nl_{}/dense/kernel"
        layers = 0
        while root.format(layers) in self.file.entries:
            layers += 1
        if layers == 0:
            return None
        width = self.file.shape(root.format(0))[1] if layers > 1 else None
        return HeadConfig(layers=layers, features=self.file.shape(root.format(layers - 1))[1], width=width)

    def _check(self, pairs: list[Pair], config: ResNetConfig) -> None:
        with torch.device("meta"):
            model = nn.ModuleDict({"encoder": ResNet(**config.model_dump())})
        expected = {name: _theirs(tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
        for pair in pairs:
            if self.file.shape(pair.theirs) != expected[pair.ours]:
                raise DataError(
                    f"{self.file.prefix}: {pair.theirs} has the shape {self.file.shape(pair.theirs)}, and a ResNet-"
                    f"{config.depth} of width {config.width:g} needs {expected[pair.ours]}"
                )

    def load(
        self, *, average: bool = False, from_head_layer: int | None = None, classes: list[str] | None = None,
        image_size: int = 224,
    ) -> Imported:  # fmt: skip
        """Return the network: encoder and projection head, or with ``from_head_layer`` a classifier.

        Args:
            average: take the moving average's copy (``ema_model/``), which pretrained SimCLRv2 files hold.
            from_head_layer: layers of the head below the classifier: 1 for the files fine-tuned on 1% and 10% of
                the labels, 0 for the others.
            classes: the classifier's outputs in order; their numbers unless given.
            image_size: the side of the views that it was trained on.

        Raises:
            DataError: the checkpoint lacks what is asked for, or a shape does not fit.
        """
        if average and not self.has_average:
            raise DataError(f"{self.file.prefix} holds no moving average (ema_model/)")
        pairs = self._encoder_pairs(self.network, average)
        common = {"network": self.network, "head": self.head, "image_size": image_size}
        if from_head_layer is None:
            if self.head is None:
                raise DataError(f"{self.file.prefix} holds no projection head; import it as a classifier")
            description = Description(kind="simclr", **common)
            pairs += self._head_pairs(self.head, average)
        else:
            layers = self.head.layers if self.head is not None else 0
            if not 0 <= from_head_layer <= layers:
                raise DataError(f"there is no head layer {from_head_layer}; {self.file.prefix} has {layers}")
            if not self.classes:
                raise DataError(f"{self.file.prefix} holds no classifier (head_supervised)")
            names = classes or [str(number) for number in range(self.classes)]
            if len(names) != self.classes:
                raise DataError(f"{len(names)} class names are given, and the classifier has {self.classes} outputs")
            description = Description(kind="classifier", layer=from_head_layer, classes=names, **common)
            if self.head is not None:
                kept = tuple(f"head.layers.{number}." for number in range(from_head_layer))
                pairs += [pair for pair in self._head_pairs(self.head, average) if pair.ours.startswith(kept)]
            pairs.append(Pair("linear.weight", self._classifier))
            pairs.append(Pair("linear.bias", self._classifier.replace("kernel", "bias")))
        with torch.device("meta"):  # the big networks would take minutes to initialise
            model = build(description)
        assert not isinstance(model, MaskedAutoencoder)
        self._fill(model, pairs)
        return Imported(model.eval(), description)

    def _fill(self, model: nn.Module, pairs: list[Pair]) -> None:
        state = model.state_dict()
        for name in set(state) - {pair.ours for pair in pairs}:  # the head's last norm has no offset
            assert name.removeprefix("head.layers.").endswith(".1.bias"), name
            state[name] = torch.zeros(state[name].shape)
        for ours, theirs in pairs:
            if theirs not in self.file.entries:
                raise DataError(f"{self.file.prefix} lacks the tensor {theirs}")
            tensor = _ours(torch.from_numpy(self.file.read(theirs)))
            if tensor.shape != state[ours].shape:
                raise DataError(
                    f"{self.file.prefix}: {theirs} has the shape {self.file.shape(theirs)}, and {ours} needs "
                    f"{tuple(state[ours].shape)} here"
                )
            if not bool(tensor.isfinite().all()):
                raise DataError(f"{self.file.prefix}: {theirs} holds values that are no finite numbers")
            state[ours] = tensor
        model.load_state_dict(state, assign=True)


def _candidates(kernel: int, channels: int) -> Iterator[ResNetConfig]:
    """Yield the networks whose first convolution has ``kernel`` rows and ``channels`` outputs."""
    for selective in (False, True):
        for small in (True, False):
            outputs = 32 if selective and not small else 64
            if kernel == (3 if small or selective else 7) and channels % outputs == 0:
                for depth in _DEPTHS:
                    yield ResNetConfig(
                        depth=depth, width=channels / outputs, selective_kernels=selective, small_images=small
                    )


def _prefix(average: bool) -> str:
    return "ema_model/" if average else ""


def _ours(tensor: Tensor) -> Tensor:
    """Bring a tensor from TensorFlow's order of dimensions into ours."""
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.t().contiguous() if tensor.ndim == 2 else tensor


def _theirs(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return (shape[2], shape[3], shape[1], shape[0])
    return shape[::-1]
