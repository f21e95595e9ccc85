"""What a run would do: each stage cached or to run, and which field, input or code makes it so.

KFP's cache decides; this predicts it from the fingerprints that earlier runs left in MLflow.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.augment.spec import resolve_specs
from tenfold.config import RunConfig
from tenfold.data.build import recorded
from tenfold.data.manifest import Dataset
from tenfold.environment import Environment
from tenfold.fingerprint import digest, fingerprint, source_digest
from tenfold.storage import open_store
from tenfold.tracking import latest_tasks


@dataclass(frozen=True)
class Step:
    """One stage of the plan. ``why`` says what makes it run; empty where it is cached."""

    stage: str
    cached: bool
    why: str
    fingerprint: str


def wiring(config: RunConfig, dataset: Dataset | None) -> dict[str, dict[str, str | None]]:
    """Return stage → input → what it is called; a name in ``<…>`` stands for another stage's result.

    Must say what the DAG says: a test compares the fingerprints with a real run's.
    """
    views = {name: digest(spec.encoded()) for name, spec in resolve_specs(config.resolved().augment)}
    data = dataset.digest if dataset else "unknown"
    unlabelled = digest(dataset.manifest.unlabelled().divided()[0]) if dataset else "unknown"
    watched = data if config.pretrain.watched else None
    evaluation = views["evaluation"]
    return {
        "augment": {"dataset": data},
        "pretrain": {"dataset": unlabelled, "watched": watched, "views": views["pretrain"],
                     "evaluation": evaluation},
        "baseline": {"dataset": data, "views": views["baseline"], "evaluation": evaluation},
        "finetune": {"dataset": data, "views": views["finetune"], "evaluation": evaluation, "encoder": "<pretrain>"},
        "self_train": {"dataset": data, "weak": views["weak"], "strong": views["strong"], "evaluation": evaluation,
                       "teacher": "<finetune>", "encoder": "<pretrain>"},
        "pseudo_label": {"dataset": data, "weak": views["weak"], "evaluation": evaluation, "teacher": "<self_train>",
                         "finetuned": "<finetune>", "encoder": "<pretrain>"},
        "distill": {"dataset": data, "views": views["distill"], "evaluation": evaluation,
                    "soft_labels": "<pseudo_label>", "teacher": "<self_train>", "finetuned": "<finetune>"},
        "evaluate": {"dataset": data, "evaluation": evaluation, "views": "<augment>", "encoder": "<pretrain>",
                     "baseline": "<baseline>", "finetuned": "<finetune>", "teacher": "<self_train>",
                     "soft_labels": "<pseudo_label>", "student": "<distill>"},
    }  # fmt: skip


def make_plan(config: RunConfig, listing: str | None, environment: Environment) -> list[Step]:
    """Predict every stage of a run with ``config``."""
    strings, code = config.stage_strings(), source_digest()
    earlier = latest_tasks(environment)
    dataset = known_dataset(listing, environment)
    steps = [Step("preflight", False, "always: it looks at the outside world", "")]
    told = (
        "always, in a moment: the source is unchanged"
        if dataset
        else "the source, its labels or data's settings are new"
    )
    steps.append(Step("shard", False, told, ""))
    prints: dict[str, str] = {}
    running: set[str] = set()
    for stage, inputs in wiring(config, dataset).items():
        names: dict[str, str | None] = {}
        upstream = set()
        for name, value in inputs.items():
            if value is not None and value.startswith("<"):
                upstream.add(value.strip("<>"))
                value = prints[value.strip("<>")]
            names[name] = value
        if stage == "baseline":
            names["encoder"] = None
        prints[stage] = fingerprint(stage, strings[stage], names, code)
        why = _why(stage, prints[stage], strings[stage], names, code, earlier.get(stage, []))
        if why and stage == "pretrain" and dataset is None:
            why += " (cached if the training images turn out to be an earlier run's)"
        section = json.loads(strings[stage])
        if why and section.get("enabled") is False:
            why = f"in a moment: {stage}.enabled is false, so it passes on what it is given"
        if why and stage == "pretrain" and (section.get("init") or {}).get("skip"):
            why = "in a moment: pretrain.init.skip is true, so it takes the encoder as it is"
        if not why and upstream & running:
            why = f"{', '.join(sorted(upstream & running))} runs again"
        if why:
            running.add(stage)
        steps.append(Step(stage, not why, why, prints[stage]))
    steps.append(Step("promote", False, "always: it reads the champion", ""))
    return steps


def known_dataset(listing: str | None, environment: Environment) -> Dataset | None:
    """Return the data set that an earlier run made of the same listing; None if there is none."""
    return recorded(open_store(environment.store, patient=False), listing) if listing else None


def _why(
    stage: str,
    name: str,
    config: str,
    inputs: Mapping[str, str | None],
    code: str,
    earlier: list[dict[str, str]],
) -> str:
    if not earlier:
        return "it never ran here"
    for tags in earlier:
        if tags["tenfold.fingerprint"] == name:
            gone = [place for place in json.loads(tags.get("tenfold.outputs", "[]")) if not Path(place).exists()]
            return f"its result is gone ({gone[0]})" if gone else ""
    last = earlier[0]
    reasons = _changed_fields(json.loads(last["tenfold.config"]), json.loads(config))
    before = json.loads(last["tenfold.inputs"])
    changed = sorted(key for key in {*before, *inputs} if before.get(key) != inputs.get(key))
    if changed:
        reasons.append(f"another {', another '.join(changed)}")
    if last["tenfold.code"] != code:
        reasons.append(f"another code ({last['tenfold.code'][:8]} → {code[:8]})")
    return "; ".join(reasons) or f"no earlier {stage} has this combination"


def _changed_fields(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in sorted({*before, *after}):
            found += _changed_fields(before.get(key), after.get(key), f"{path}{key}.")
        return found
    return [] if before == after else [f"{path.removesuffix('.')}: {before} → {after}"]
