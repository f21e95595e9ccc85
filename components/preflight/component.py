"""The KFP components of preflight: for a run, and for a retraining."""

from typing import NamedTuple

from kfp import dsl


def preflight(
    preset: str,
    overrides: str,
    name: str,
    source: str,
    annotations: str,
    labels_per_class: str,
    labels_fraction: str,
    labels_file: str,
    test_fraction: str,
    seed: str,
    image_size: str,
    method: str,
    teacher_depth: str,
    teacher_width: str,
    pretrain_epochs: str,
    temperature: str,
    finetune_steps: str,
    self_train_on: str,
    threshold: str,
    student_depth: str,
    student_width: str,
    distill_epochs: str,
    distill_temperature: str,
    alpha: str,
    model_name: str,
    min_gain: str,
    resolved: dsl.Output[dsl.Artifact],
) -> NamedTuple(
    "Strings",
    [
        ("shard", str), ("augment", str), ("pretrain", str), ("baseline", str), ("finetune", str),
        ("self_train", str), ("pseudo_label", str), ("distill", str), ("evaluate", str), ("promote", str),
        ("watched", bool),
    ],
):  # fmt: skip
    """Resolve the configuration, check the surroundings, and give each stage its canonical string."""
    given = dict(locals())  # the arguments alone, as long as this line is the first
    import time
    from pathlib import Path
    from typing import NamedTuple

    from tenfold.components.preflight.stage import FORM, Request, run, write_resolved
    from tenfold.config import STAGES
    from tenfold.execution import Attempt
    from tenfold.tracking import task_run

    with Attempt("preflight") as attempt:
        attempt.reporter.started()
        start = time.monotonic()
        config, _ = run(Request.of(FORM, given), attempt.environment)
        attempt.tracker = task_run(attempt.environment, "preflight")
        write_resolved(config, Path(resolved.path))
        attempt.tracker.artifact(Path(resolved.path))
        attempt.tracker.finish("FINISHED")
        attempt.reporter.finished(time.monotonic() - start)
        strings = config.stage_strings()
        return NamedTuple("Strings", [*((stage, str) for stage in STAGES), ("watched", bool)])(
            *(strings[stage] for stage in STAGES), config.pretrain.watched
        )


def retrain_preflight(
    preset: str,
    overrides: str,
    name: str,
    source: str,
    annotations: str,
    labels_per_class: str,
    labels_fraction: str,
    labels_file: str,
    model_name: str,
    min_gain: str,
    min_new_images: str,
    warm_start: str,
    pretrain_share: str,
    resolved: dsl.Output[dsl.Artifact],
) -> NamedTuple(
    "Strings",
    [
        ("shard", str), ("augment", str), ("pretrain", str), ("baseline", str), ("finetune", str),
        ("self_train", str), ("pseudo_label", str), ("distill", str), ("evaluate", str), ("promote", str),
        ("watched", bool), ("novelty", str), ("known", str), ("champion", str),
    ],
):  # fmt: skip
    """As preflight; pretraining is to start from the champion's encoder, and ``known`` is what that learned from."""
    given = dict(locals())  # the arguments alone, as long as this line is the first
    import time
    from pathlib import Path
    from typing import NamedTuple

    from tenfold.components.preflight.champion import run
    from tenfold.components.preflight.stage import RETRAIN_FORM, Request, write_resolved
    from tenfold.config import STAGES
    from tenfold.execution import Attempt
    from tenfold.fingerprint import canonical_json
    from tenfold.tracking import task_run

    with Attempt("preflight") as attempt:
        attempt.reporter.started()
        start = time.monotonic()
        found = run(Request.of(RETRAIN_FORM, given), attempt.environment, attempt.reporter)
        attempt.tracker = task_run(attempt.environment, "preflight")
        write_resolved(found.config, Path(resolved.path))
        attempt.tracker.artifact(Path(resolved.path))
        attempt.tracker.finish("FINISHED")
        attempt.reporter.finished(time.monotonic() - start)
        strings = found.config.stage_strings()
        outputs = [*((stage, str) for stage in STAGES), ("watched", bool),
                   *((name, str) for name in ("novelty", "known", "champion"))]  # fmt: skip
        return NamedTuple("Strings", outputs)(
            *(strings[stage] for stage in STAGES), found.config.pretrain.watched,
            canonical_json(found.config.retrain.model_dump()), found.known, found.champion,
        )  # fmt: skip


def component(image: str):
    """Return preflight as a component that runs in ``image``."""
    return dsl.component(preflight, base_image=image, install_kfp_package=False)


def retrain_component(image: str):
    """Return the preflight of a retraining as a component that runs in ``image``."""
    return dsl.component(retrain_preflight, base_image=image, install_kfp_package=False)
