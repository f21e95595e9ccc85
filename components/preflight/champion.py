"""What a retraining takes from the champion: the images that it knew, and the encoder that it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tenfold.components.preflight.stage import Request, begin, with_init
from tenfold.config import Description, PretrainConfig, RunConfig, ViTConfig, changed, channels_of
from tenfold.environment import Environment
from tenfold.errors import StorageError
from tenfold.progress import Reporter
from tenfold.registry import CHAMPION, ENCODER_TAG, Registered, Registry
from tenfold.storage import open_store
from tenfold.tracking import parent_run


@dataclass(frozen=True)
class Retraining:
    """A retraining that was checked.

    Attributes:
        config: of the run; pretraining begins with the champion's encoder where it can.
        known: URI of the data set that the champion learned from; empty: there is no champion.
        champion: model and version, ``name/3``; empty: there is none.
    """

    config: RunConfig
    known: str
    champion: str


def run(request: Request, environment: Environment, reporter: Reporter) -> Retraining:
    """Resolve the configuration, look up the champion, and begin the run.

    What pretraining begins with is decided here, once, so that it is part of that stage's configuration string: cache
    and fingerprint see another encoder as another configuration.

    Raises:
        TenfoldError: says what is wrong, where, and what to do.
    """
    config = request.resolve()
    champion = Registry(environment, config.promote.model, patient=False).by_alias(CHAMPION)
    config, told = warmed(config, champion)
    begin(config, environment, request.idle(config))
    reporter.note(told)
    tags = {"tenfold.pretraining": told}
    if champion is None:
        parent_run(environment).tags(tags)
        return Retraining(config, "", "")
    version = f"{config.promote.model}/{champion.version}"
    parent_run(environment).tags({**tags, "tenfold.retrains": version})
    return Retraining(config, champion.tags.get("tenfold.dataset", ""), version)


def warmed(config: RunConfig, champion: Registered | None) -> tuple[RunConfig, str]:
    """Return the configuration with the champion's encoder to start from, and what is to be told of that.

    Pretraining starts from scratch where there is none, where it is gone, or where another network is configured.

    Raises:
        TenfoldError: the store that holds the encoder cannot be read.
    """
    if champion is None:
        return config, f"{config.promote.model} has no champion yet: pretraining starts from scratch"
    if config.pretrain.init is not None:
        return config, f"pretraining starts from pretrain.init, {config.pretrain.init.path}"
    address = champion.tags.get(ENCODER_TAG, "")
    problem = _obstacle(config, address) if config.retrain.warm_start else "retrain.warm_start is false"
    if problem:
        return config, f"pretraining starts from scratch: {problem}"
    shorter = _shorter(config.pretrain, config.retrain.pretrain_share)
    warm = with_init(changed(config, {"pretrain": {"init": {"path": address}, **shorter}}))
    length = f"{warm.pretrain.steps} steps" if warm.pretrain.steps else f"{warm.pretrain.epochs:g} epochs"
    return warm, f"pretraining starts from the encoder of version {champion.version}, the champion, for {length}"


def _obstacle(config: RunConfig, address: str) -> str:
    """Return why pretraining cannot start from the encoder at ``address``; empty where it can."""
    if not config.pretrain.enabled:
        return "pretrain.enabled is false"
    if not address:
        return f"the champion has no tag {ENCODER_TAG}"
    store = open_store(address, patient=False)
    if not store.exists("model.json") or not store.exists("model.safetensors"):
        return f"the champion's encoder is gone from {address}"
    try:
        known = Description.model_validate_json(store.read("model.json"))
    except (ValidationError, StorageError) as error:
        return f"the champion's encoder in {address} cannot be read: {str(error).splitlines()[0]}"
    masks = config.pretrain.method == "mae"
    if known.kind != config.pretrain.method or known.network != config.pretrain.network:
        return "pretrain.method or pretrain.network is another than the champion's"
    if (known.decoder != config.pretrain.mae.decoder) if masks else (known.head != config.pretrain.head):
        return f"pretrain.{'mae.decoder' if masks else 'head'} is another than the champion's"
    if isinstance(known.network, ViTConfig) and known.image_size != config.augment.image_size:
        return "augment.image_size is another than the champion's"
    if known.channels != channels_of(config.data.pixels):
        return "data.pixels.channels is another than the champion's"
    return ""


def _shorter(pretrain: PretrainConfig, share: float) -> dict[str, Any]:
    """Return the length of pretraining, cut to ``share``."""
    if pretrain.steps is not None:
        return {"steps": math.ceil(share * pretrain.steps)}
    return {"epochs": share * (pretrain.epochs or 0)}
