"""A view, resolved: everything that decides its pixels, in one canonical string with a hash.

The augment stage gives each training stage the strings of the views that it uses. The hash travels with
every model.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from pydantic import ValidationError

from tenfold.config import AugmentConfig, EvalViewConfig, PixelsConfig, Section, ViewConfig
from tenfold.errors import ConfigError, DataError, first_fault
from tenfold.fingerprint import canonical_json, digest

Backend = Literal["dali", "torchvision"]


class ViewSpec(Section):
    """One view: random (``view``) or the evaluation's (``evaluation``)."""

    version: Literal[1] = 1
    backend: Backend
    image_size: int
    view: ViewConfig | None = None
    evaluation: EvalViewConfig | None = None

    @property
    def pixels(self) -> PixelsConfig | None:
        """Of the images that it is taken of; None: RGB."""
        view = self.evaluation or self.view
        return view.pixels if view else None

    def encoded(self) -> str:
        """Return the canonical string."""
        return canonical_json(self.model_dump())

    @property
    def hash(self) -> str:
        """The sha256 of the canonical string."""
        return digest(self.encoded())


class ViewSpecs(Section):
    """All views of a run; the last three are each one of weak, strong and labelled."""

    pretrain: ViewSpec
    weak: ViewSpec
    strong: ViewSpec
    evaluation: ViewSpec
    baseline: ViewSpec
    finetune: ViewSpec
    distill: ViewSpec


def resolve_backend(wanted: Literal["auto", "dali", "torchvision"]) -> Backend:
    """Return the backend to use here.

    Raises:
        ConfigError: DALI was asked for and is not installed.
    """
    installed = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if wanted == "dali" and not installed:
        raise ConfigError("augment.backend is dali, which is not installed here; use auto or torchvision")
    return "dali" if wanted != "torchvision" and installed else "torchvision"


def resolve_specs(config: AugmentConfig) -> ViewSpecs:
    """Return every view of ``config``."""
    backend, size = resolve_backend(config.backend), config.image_size

    def random(view: ViewConfig) -> ViewSpec:
        return ViewSpec(backend=backend, image_size=size, view=view)

    weak, strong = random(config.weak), random(config.strong)
    either = {"weak": weak, "strong": strong, "labelled": random(config.labelled)}
    return ViewSpecs(
        pretrain=random(getattr(config, config.pretrain)), weak=weak, strong=strong,
        evaluation=ViewSpec(backend=backend, image_size=size, evaluation=config.evaluation),
        baseline=either[config.baseline], finetune=either[config.finetune], distill=either[config.distill],
    )  # fmt: skip


def parse_spec(text: str) -> ViewSpec:
    """Read a view's canonical string.

    Raises:
        DataError: it was made by another version.
    """
    try:
        return ViewSpec.model_validate_json(text)
    except ValidationError as error:
        raise DataError(
            f"the view specification cannot be read by this version: {first_fault(error.errors())}"
        ) from None
