"""From presets, files and ``--set`` to a :class:`RunConfig`; every fault is reported at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tenfold.config.networks import ResNetConfig, ViTConfig
from tenfold.config.presets import load_preset, merge
from tenfold.config.run import RunConfig
from tenfold.errors import ConfigError, did_you_mean


def compose(
    preset: str | None, file: Path | None, text: str, assignments: Iterable[str], texts: Mapping[str, str] | None = None
) -> tuple[str | None, dict[str, Any]]:
    """Put what the user gave on top of each other: file, then YAML text, then single assignments.

    Args:
        preset: name of a preset, or None.
        file: YAML file; a key ``preset`` in it names what it builds on.
        text: YAML mapping, as a pipeline's ``overrides`` parameter gives it; may name a preset too.
        assignments: ``a.b=c`` strings; the value is read as YAML.
        texts: values by their path (``a.b``), beside the assignments; taken as they are and not read as YAML.

    Returns:
        The preset's name, and the values that change it.

    Raises:
        ConfigError: a file is missing or no mapping, or an assignment has no ``=``.
    """
    layers: list[dict[str, Any]] = []
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"there is no configuration file {file}")
        layers.append(_mapping(_text(file), str(file)))
    if text.strip():
        layers.append(_mapping(text, "overrides"))
    for layer in layers:
        named = layer.pop("preset", None)
        if named is not None:
            preset = str(named)
    single = _assigned(assignments)
    for path, value in (texts or {}).items():
        merge(single, _nested(path, value), turns=False, ends=False)
    layers.append(single)
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, layer, turns=False)
    return preset, merged


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    text: str = "",
    assignments: Iterable[str] = (),
    texts: Mapping[str, str] | None = None,
) -> RunConfig:
    """Return the run's configuration: a preset (or the defaults) with what :func:`compose` puts on top.

    Args:
        preset: as for :func:`compose`.
        file: as for :func:`compose`.
        text: as for :func:`compose`.
        assignments: as for :func:`compose`.
        texts: as for :func:`compose`.

    Raises:
        ConfigError: names every fault and where it stands.
    """
    base, values = compose(preset, file, text, assignments, texts)
    merged = load_preset(base) if base else {}
    merge(merged, values)
    for section in merged.values():
        # A length in one unit replaces the default in the other.
        if isinstance(section, dict) and section.get("steps") is not None:
            section.setdefault("epochs", None)
        elif isinstance(section, dict) and section.get("epochs") is not None:
            section.setdefault("steps", None)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def changed(config: RunConfig, sections: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Return ``config`` with fields of some sections replaced, checked as a whole again.

    Raises:
        ConfigError: the sections do not fit each other any more.
    """
    values = config.model_dump()
    for section, fields in sections.items():
        values[section] |= fields
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as UTF-8 text: {error}") from None


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no valid YAML: {error}") from None
    if value is None:
        return {}
    try:
        json.dumps(value, default=str)
    except (ValueError, TypeError, RecursionError):
        raise ConfigError(f"{where} refers to itself, or has keys that are no names") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping of sections, not a {type(value).__name__}")
    return value


def _assigned(assignments: Iterable[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    faults = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not all(path.split(".")):
            faults.append(f"'{assignment}' is not of the form section.key=value")
            continue
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        merge(result, _nested(path.strip(), parsed), turns=False, ends=False)
    if faults:
        raise ConfigError("\n".join(faults))
    return result


def _nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"] if part not in _KINDS)
        if fault["type"] == "extra_forbidden":
            known = _fields_at(fault["loc"][:-1])
            hint = did_you_mean(str(fault["loc"][-1]), known) or f"; known here: {', '.join(known)}"
            lines.append(f"{path}: there is no such key{hint}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = fault.get("input")
            shown = f" (given: {given!r})" if not isinstance(given, dict | BaseModel) else ""
            lines.append(f"{path or 'configuration'}: {message[0].lower()}{message[1:]}{shown}")
    head = "the configuration has a fault:" if len(lines) == 1 else f"the configuration has {len(lines)} faults:"
    return "\n".join([head, *(f"  {line}" for line in lines)])


#: What pydantic puts into a fault's place where a section is of one of several kinds.
_KINDS = {"ResNet": ResNetConfig, "ViT": ViTConfig}


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    model: Any = RunConfig
    for part in path:
        if part in _KINDS:
            model = _KINDS[str(part)]
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields):
            return []
        annotation = model.model_fields[str(part)].annotation
        options = [annotation, *get_args(annotation)] if get_origin(annotation) else [annotation]
        options += [inner for option in options for inner in get_args(option)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
