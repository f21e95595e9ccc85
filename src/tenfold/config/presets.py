"""Presets: recipes as YAML files, each with where it is from, what it costs, and what to expect.

A file is one preset, or with a key ``family`` one for each row of a table: the family's axes (``network`` and
``labels``) name changes of the file's values, ``rows`` those of a pair, and a preset stands for each pair that has an
accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from tenfold.config.base import Section
from tenfold.errors import ConfigError, did_you_mean


class About(Section):
    """What is known of a preset: paper and table, the command, top-1 accuracy, cost, and who measured it."""

    source: str
    command: str
    accuracy: str
    cost: str
    measured: str


@dataclass(frozen=True)
class Preset:
    """A name, the values that differ from the defaults, and what is known of them."""

    name: str
    values: dict[str, Any]
    about: About


@cache
def _presets() -> dict[str, Preset]:
    folder = files("tenfold") / "pipelines" / "presets"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            for preset in _read(entry.name.removesuffix(".yaml"), yaml.safe_load(entry.read_text())):
                found[preset.name] = preset
    return found


def _read(name: str, content: dict[str, Any]) -> Iterator[Preset]:
    about, family = content.pop("about"), content.pop("family", None)
    if family is None:
        yield Preset(name, content, About.model_validate(about))
        return
    for network, row in family["accuracy"].items():
        for labels, accuracy in row.items():
            full, values = f"{name}-{network}-{labels}", {"name": f"{name}-{network}-{labels}"}
            of_the_row = family.get("rows", {}).get(network, {}).get(labels, {})
            for layer in (content, family["network"][network], family["labels"][labels], of_the_row):
                merge(values, layer)
            told = {
                "command": about["command"].format(name=full), "accuracy": f"{accuracy}% ({about['accuracy']})",
                "cost": about["cost"].format(hours=family["gpu_hours"][network]),
            }  # fmt: skip
            yield Preset(full, values, About.model_validate({**about, **told}))


def merge(base: dict[str, Any], over: Mapping[str, Any], *, turns: bool = True, ends: bool = True) -> None:
    """Lay ``over`` on ``base``, section by section; a choice ends the other one that stood in its place.

    So does a network of another kind: the key ``vit`` makes it a transformer, and ``vit: null`` a ResNet again, and
    nothing that was said of the one holds for the other, unless ``turns`` is false: one user's words belong together.
    With ``ends`` false both choices stay, which is a fault where they were made at once.
    """
    for key, value in over.items():
        if isinstance(value, Mapping):
            held = base.get(key)
            turned = isinstance(held, dict) and "vit" in value and (held.get("vit") is None) != (value["vit"] is None)
            base[key] = held = dict(held) if isinstance(held, dict) and not (turned and turns) else {}
            merge(held, value, turns=turns, ends=ends)
            if turns and "vit" in held and held["vit"] is None:  # a ResNet has no such key
                del held["vit"]
        else:
            base[key] = value
            if value is None or not ends:
                continue
            for others in (group - {key} for group in _ALTERNATIVES if key in group):
                for other in others - set(over):  # a later layer's choice ends an earlier layer's other one
                    base.pop(other, None)


#: Keys of which a section takes one.
_ALTERNATIVES = (
    frozenset({"steps", "epochs"}),
    frozenset({"warmup", "warmup_epochs"}),
    frozenset({"per_class", "fraction", "file"}),
)


def preset_names() -> list[str]:
    """Return the names of the presets that are installed."""
    return sorted(_presets())


def about_preset(name: str) -> About:
    """Return what is known of a preset."""
    return _presets()[name].about


def load_preset(name: str) -> dict[str, Any]:
    """Return a copy of a preset's values.

    Raises:
        ConfigError: there is none of that name.
    """
    known = _presets()
    if name not in known:
        hint = did_you_mean(name, list(known)) or "."
        raise ConfigError(f"there is no preset '{name}'{hint} `tenfold presets` lists all {len(known)}")
    values: dict[str, Any] = {}
    merge(values, known[name].values)
    return values
