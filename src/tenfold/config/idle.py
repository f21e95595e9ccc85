"""Settings that decide nothing, since others switch off what they are of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from tenfold.config.networks import ResNetConfig
from tenfold.config.training import TrainConfig

if TYPE_CHECKING:
    from tenfold.config.run import RunConfig

#: Of pretraining, where nothing is pretrained.
_OF_TRAINING = (
    *sorted(TrainConfig.model_fields.keys() - {"seed", "deterministic"}),
    "temperature",
    "memory",
    "watch",
    "keep",
)


def idle(config: RunConfig, given: Iterable[str]) -> list[str]:
    """Return a sentence for each reason why settings that somebody gave have no effect in this run.

    What a preset or a default says is not told: nobody expects anything of it.

    Args:
        config: of the run, with the network of ``pretrain.init`` where there is one.
        given: paths of settings (``pretrain.temperature``).
    """
    reasons = list(_idle(config))
    found: dict[str, list[str]] = {}
    for path in given:
        reason = next((why for place, why in reasons if path == place or path.startswith(f"{place}.")), None)
        if reason is not None:
            found.setdefault(reason, []).append(path)
    return [
        f"{', '.join(paths)} {'has' if len(paths) == 1 else 'have'} no effect: {why}" for why, paths in found.items()
    ]


def without_idle(config: RunConfig) -> RunConfig:
    """Return the run with the default in each place that decides nothing, so that nothing is done again for it.

    Views stay as they are: those of pretraining are shown even where nothing is pretrained.
    """
    for place, _ in _idle(config):
        if not place.startswith("augment."):
            config = _defaulted(config, place.split("."))
    return config


_Section = TypeVar("_Section", bound=BaseModel)


def _defaulted(section: _Section, path: list[str]) -> _Section:
    """Return a section with the default of its class at ``path``."""
    name, *below = path
    field = type(section).model_fields[name]
    value = _defaulted(getattr(section, name), below) if below else field.get_default(call_default_factory=True)
    return section.model_copy(update={name: value})


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the path of each value of a nested mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _idle(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield places, of a setting or of all below one, that decide nothing, and why."""
    pretrain = config.pretrain
    trained = {"finetune": pretrain.network, "baseline": config.student()["network"]}
    if pretrain.trains:
        trained["pretrain"] = pretrain.network
    else:
        why = "pretrain.enabled is false" if not pretrain.enabled else "pretrain.init.skip is true"
        yield from ((f"pretrain.{name}", why) for name in _OF_TRAINING)
        yield from ((f"augment.{view}", why) for view in ("contrastive", "masked"))
    if pretrain.method == "mae":
        why = "pretrain.method is mae"
        yield from ((place, why) for place in ("pretrain.temperature", "pretrain.head", "augment.contrastive"))
    else:
        yield from ((place, "pretrain.method is simclr") for place in ("pretrain.mae", "augment.masked"))
    if config.self_train.enabled:
        trained["self_train"] = pretrain.network
        if not config.self_train.pseudo_mixup:
            yield "self_train.pseudo_cutmix", "self_train.pseudo_mixup is false"
    else:
        yield from _section(config, "self_train", "self_train.enabled is false")
    if config.distils:
        trained["distill"] = config.distill.network
    else:
        why = "nothing is distilled; distill.enabled=true makes a student"
        yield from _section(config, "distill", why)
        yield "pseudo_label", why
        yield "augment.distill", why
    for name, network in trained.items():
        optimizer = getattr(config, name).optimizer
        where, why = f"{name}.optimizer", f"{name}.optimizer.name is {optimizer.name}"
        if optimizer.warmup_epochs is not None:
            yield f"{where}.warmup", f"{where}.warmup_epochs is set"
        for field in ("momentum",) if optimizer.name == "adamw" else ("betas", "decay_classifier"):
            yield f"{where}.{field}", why
        headless = pretrain.method == "mae" or (name != "pretrain" and config.finetune.from_head_layer == 0)
        if not isinstance(network, ResNetConfig) and headless:  # a projection head has batch norm
            yield f"{name}.batch_norm", "a transformer without a projection head has no batch norm"
    evaluate = config.evaluate
    if evaluate.selection == 0:
        yield "evaluate.tolerance", "evaluate.selection is 0"
    elif evaluate.ship == "student":
        yield "evaluate.tolerance", "evaluate.ship is student"
    if config.data.labels.file is not None:
        yield "data.labels.seed", "data.labels.file says which images are labelled"


def _section(config: RunConfig, name: str, why: str) -> Iterator[tuple[str, str]]:
    """Yield all of a section but its switch."""
    yield from ((f"{name}.{field}", why) for field in type(getattr(config, name)).model_fields if field != "enabled")
