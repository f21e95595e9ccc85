"""Preflight: resolves the configuration and refuses in seconds what would fail in hours."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.augment.spec import resolve_backend
from tenfold.config import (
    Description,
    HeadConfig,
    ResNetConfig,
    RunConfig,
    TimmConfig,
    ViTConfig,
    changed,
    channels_of,
    compose,
    idle,
    leaves,
    load_config,
)
from tenfold.data.listing import list_images
from tenfold.data.plan import listing_key
from tenfold.data.sources import TABLES, open_source
from tenfold.environment import Environment
from tenfold.errors import ConfigError, DataError, TenfoldError
from tenfold.fingerprint import digest, file_digest
from tenfold.progress import Reporter
from tenfold.progress import count as counted
from tenfold.storage import FileStore, free_bytes, open_store
from tenfold.tracking import parent_run, send_left
from tenfold.trainjob import Needs, check_capacity

#: At most this many images of a source are looked at.
LISTED = 200_000

_BOTH = {
    "name": "name",
    "source": "data.source",
    "annotations": "data.annotations",
    "labels_per_class": "data.labels.per_class",
    "labels_fraction": "data.labels.fraction",
    "labels_file": "data.labels.file",
    "model_name": "promote.model",
    "min_gain": "promote.min_gain",
}
#: Fields of the pipeline's form, and the place of each in the configuration.
FORM = {
    **_BOTH,
    "test_fraction": "data.split.test_fraction",
    "seed": "seed",
    "image_size": "augment.image_size",
    "method": "method",
    "teacher_depth": "pretrain.network.depth",
    "teacher_width": "pretrain.network.width",
    "pretrain_epochs": "pretrain.epochs",
    "temperature": "pretrain.temperature",
    "finetune_steps": "finetune.steps",
    "self_train_on": "self_train.enabled",
    "threshold": "self_train.threshold",
    "student_depth": "distill.network.depth",
    "student_width": "distill.network.width",
    "distill_epochs": "distill.epochs",
    "distill_temperature": "distill.temperature",
    "alpha": "distill.alpha",
}
#: As ``FORM``, of the retraining pipeline.
RETRAIN_FORM = {
    **_BOTH,
    "min_new_images": "retrain.min_new_images",
    "warm_start": "retrain.warm_start",
    "pretrain_share": "retrain.pretrain_share",
}
#: Places that take text, in which YAML would find comments, numbers and booleans; the others' values are YAML.
TEXTS = frozenset({"name", "method", "data.source", "data.annotations", "data.labels.file", "promote.model"})


@dataclass(frozen=True)
class Request:
    """What the pipeline's form says.

    Attributes:
        preset: name of a preset; empty: the defaults, or the one that the overrides name.
        overrides: YAML mapping of sections.
        values: by their place in the configuration; one that is empty or blank is as in the preset.
    """

    preset: str
    overrides: str
    values: dict[str, str]

    @classmethod
    def of(cls, form: Mapping[str, str], given: Mapping[str, Any]) -> Request:
        """Return the request that a component's arguments make.

        Args:
            form: the fields, and the place of each in the configuration.
            given: the arguments by name: ``preset``, ``overrides`` and each field of the form.
        """
        return cls(given["preset"], given["overrides"], {place: given[field] for field, place in form.items()})

    def load(self) -> RunConfig:
        """Return the configuration that is asked for, as far as it can be known anywhere.

        Raises:
            ConfigError: every fault at once.
        """
        given = {place: value.strip() for place, value in self.values.items() if value.strip()}
        return load_config(
            self.preset or None,
            text=self.overrides,
            assignments=[f"{place}={value}" for place, value in given.items() if place not in TEXTS],
            texts={place: value for place, value in given.items() if place in TEXTS},
        )

    def idle(self, config: RunConfig) -> list[str]:
        """Return what was asked for and has no effect in ``config``, each with the reason."""
        _, values = compose(self.preset or None, None, self.overrides, ())
        filled = [place for place, value in self.values.items() if value.strip()]
        return idle(config, dict.fromkeys([*leaves(values), *filled]))

    def resolve(self) -> RunConfig:
        """Return the run's configuration, with what is decided where it runs.

        Raises:
            ConfigError: every fault at once.
        """
        config = self.load()
        # Decided here, once, so that every stage and every retry sees the same.
        if not config.data.source:
            raise ConfigError("data.source is not set: name a folder of images, s3://bucket/prefix, or digits")
        backend = resolve_backend(config.augment.backend)
        labels = config.data.labels.model_copy(update={"file": _absolute(config.data.labels.file)})
        data = config.data.model_copy(update={"source": _absolute(config.data.source), "labels": labels})
        augment = config.augment.model_copy(update={"backend": backend})
        return with_rung(with_init(config.model_copy(update={"augment": augment, "data": data})))


def with_rung(config: RunConfig) -> RunConfig:
    """Return ``config`` with what the encoder of ``evaluate.encoder`` is, if there is one.

    Raises:
        DataError: there is none at that place, or it is damaged.
        ConfigError: it does not take the data's images.
    """
    if config.evaluate.encoder is None:
        return config
    path, text, known = _kept_encoder("evaluate.encoder.path", config.evaluate.encoder.path, config)
    own, data = known.evaluation.pixels, config.data.pixels
    if (own and own.stored) != (data and data.stored):
        raise ConfigError(f"evaluate.encoder.path: {path} takes other pixels than data.pixels says of the data")
    return changed(config, {"evaluate": {"encoder": {"path": path, "digest": digest(text)}}})


def _kept_encoder(field: str, address: str, config: RunConfig) -> tuple[str, str, Description]:
    """Look at an encoder that is there already; return its place, its description's text, and the description."""
    path = str(_absolute(address))
    store = open_store(path, patient=False)
    if not store.exists("model.json"):
        raise DataError(
            f"{field}: there is no encoder in {path} (no model.json); `tenfold import-checkpoint` makes one "
            "of an official or timm checkpoint, and a run leaves its own in the pretrain stage's output"
        )
    try:
        text = store.read("model.json").decode()
        known = Description.model_validate_json(text)
    except ValueError:
        raise DataError(f"{field}: {path}/model.json is no description of a network") from None
    if not store.exists("model.safetensors"):
        raise DataError(f"{field}: {path} holds a description and no weights (model.safetensors)")
    if "://" not in path and file_digest(Path(path) / "model.safetensors") != known.weights:
        raise DataError(f"{field}: the weights in {path} are not those that its model.json names")
    if known.kind == "classifier":
        raise DataError(f"{field}: {path} holds a classifier; an encoder is needed")
    channels = channels_of(config.data.pixels)
    if known.channels != channels:
        raise ConfigError(
            f"{field}: {path} takes images of {known.channels} channels, and the data's have {channels} (data.pixels)"
        )
    return path, text, known


def with_init(config: RunConfig) -> RunConfig:
    """Return ``config`` with what the encoder of ``pretrain.init`` is, if there is one.

    Raises:
        DataError: there is none at that place, or it is damaged.
        ConfigError: it does not fit the rest of the configuration.
    """
    init = config.pretrain.init
    if init is None:
        return config
    path, text, known = _kept_encoder("pretrain.init.path", init.path, config)
    pretrain: dict[str, Any] = {"init": {**init.model_dump(), "path": path, "digest": digest(text)}}
    if init.skip or (known.head is not None and known.head.layers):
        pretrain["head"] = (known.head or HeadConfig(layers=0)).model_dump()
    sections = {"pretrain": pretrain}
    if isinstance(known.network, ViTConfig) and known.image_size != config.augment.image_size:
        raise ConfigError(
            f"pretrain.init.path: {path} is a transformer for images of side {known.image_size}, and "
            f"augment.image_size is {config.augment.image_size}; `tenfold import-checkpoint --image-size` makes one "
            "for another side"
        )
    if config.pretrain.method == "mae" and not init.skip and not isinstance(known.network, ViTConfig):
        raise ConfigError(
            f"pretrain.method is mae, which needs a transformer, and {path} holds {_kind(known.network)}; take it as "
            "it is (pretrain.init.skip=true), or train it on with pretrain.method=simclr"
        )
    if not isinstance(known.network, TimmConfig):
        pretrain["network"] = known.network.model_dump()
        if config.distill.init == "finetuned":
            sections["distill"] = {"network": known.network.model_dump()}
    elif not config.distils:
        raise ConfigError(
            f"nothing is distilled, so the student would be {_kind(known.network)}, which cannot be served; set "
            "distill.enabled=true and distill.network"
        )
    elif config.distill.init == "finetuned":
        raise ConfigError(
            f"distill.init is finetuned, but the encoder is {_kind(known.network)}; set distill.init=scratch and "
            "distill.network"
        )
    dropping = [name for name in ("finetune", "self_train") if getattr(config, name).drop_path > 0]
    if dropping and isinstance(known.network, ResNetConfig):
        raise ConfigError(f"{dropping[0]}.drop_path is for transformers, and {path} holds {_kind(known.network)}")
    decayed = ("finetune", "self_train") if init.skip else ("pretrain", "finetune", "self_train")
    decaying = [name for name in decayed if getattr(config, name).optimizer.layer_decay < 1]
    if decaying and isinstance(known.network, TimmConfig):
        raise ConfigError(
            f"{decaying[0]}.optimizer.layer_decay needs a network whose layers are known, and {path} holds "
            f"{_kind(known.network)}: set it to 1"
        )
    return changed(config, sections)


def _kind(network: ResNetConfig | ViTConfig | TimmConfig) -> str:
    """Return what kind of network it is, in words."""
    if isinstance(network, ViTConfig):
        return f"ViT-{network.vit} on patches of {network.patch} pixels"
    return f"timm's {network.timm}" if isinstance(network, TimmConfig) else f"a ResNet-{network.depth}"


def _absolute(address: str | None) -> str | None:
    """Return a plain path as an absolute one; other addresses as they are."""
    if not address or address == "digits" or "://" in address:
        return address
    return str(Path(address).expanduser().absolute())


def check(config: RunConfig) -> str | None:
    """Refuse what cannot work: the source, the label list, the classes.

    Of a source with more than ``LISTED`` images the rest is left to sharding, since a check must take seconds.

    Returns:
        The key under which a data set of this listing is recorded; None where the listing was not read whole.

    Raises:
        TenfoldError: says what is wrong, where, and what to do.
    """
    source = config.data.source
    table = source.endswith(TABLES)
    if source != "digits" and "://" not in source and not (Path(source).is_file() if table else Path(source).is_dir()):
        raise DataError(
            f"there is no {'file' if table else 'folder'} {source}; data.source takes a folder, s3://bucket/prefix, a "
            "table of images (.csv, .parquet), torchvision://NAME or digits"
        )
    with tempfile.TemporaryDirectory() as folder:
        listing = list_images(open_source(source, patient=False), config.data, Path(folder) / "listing", LISTED)
        if len(listing.classes) < 2 and listing.complete:
            raise DataError(
                f"{config.data.source} shows {len(listing.classes)} class(es) and at least two are needed; put images "
                "into <class>/ folders, or give data.annotations or data.labels.file"
            )
        return listing_key(listing, config.data) if listing.complete else None


def run(request: Request, environment: Environment) -> tuple[RunConfig, str | None]:
    """Resolve the configuration, and begin a run with it (see :func:`begin`)."""
    config = request.resolve()
    return config, begin(config, environment, request.idle(config))


def begin(config: RunConfig, environment: Environment, idle_settings: Sequence[str] = ()) -> str | None:
    """Check run and cluster, open the store, make MLflow's parent run, and send it what earlier runs could not.

    Args:
        config: of the run.
        environment: of preflight.
        idle_settings: what was asked for and has no effect, to be told.

    Returns:
        As :func:`check`.

    Raises:
        TenfoldError: says what is wrong, where, and what to do.
    """
    if environment.needs is not None:
        check_capacity(Needs.parse(environment.needs), Reporter("preflight", environment.events))
    listing = check(config)
    store = open_store(environment.store, patient=False)
    store.write(f"runs/{environment.run_id}/config.json", config.model_dump_json(indent=1).encode())
    places = [environment.home, *([store.root] if isinstance(store, FileStore) else [])]
    for place in places:
        if free_bytes(place) < 200_000_000:
            raise DataError(f"less than 200 MB are free on the disk of {place}")
    reporter = Reporter("preflight", environment.events)
    if config.pretrain.init is not None:
        reporter.note(f"the network is that of pretrain.init, {_kind(config.pretrain.network)}, whatever else was set")
    if not config.distils:
        reporter.note("nothing is distilled: the teacher itself is served; distill.enabled=true makes a student")
    for told in idle_settings:
        reporter.note(told)
    parent = parent_run(environment, config.name, patient=False)
    parent.tags({"tenfold.config": json.dumps(config.model_dump())[:7900], "tenfold.source": config.data.source})
    parent.params({"name": config.name, "source": config.data.source, "seed": config.seed})
    _send_waiting(environment)
    return listing


def _send_waiting(environment: Environment) -> None:
    reporter = Reporter("preflight", environment.events)
    try:
        count = send_left(environment, open_store(environment.store, patient=False), reporter.warn)
    except TenfoldError as error:
        reporter.warn(f"what earlier runs left for MLflow still waits: {error}")
        return
    if count:
        reporter.note(f"sent to MLflow what {counted(count, 'earlier task')} had left")


def write_resolved(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration for the record."""
    path.write_text(config.model_dump_json(indent=1))
