"""The KFP component of promotion."""

from typing import NamedTuple

from kfp import dsl


def promote(
    config: str, student: dsl.Input[dsl.Model], encoder: dsl.Input[dsl.Model], evaluation: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.HTML], verdict: dsl.Output[dsl.Markdown],
) -> NamedTuple("Verdict", [("alias", str), ("version", str)]):  # fmt: skip
    """Register the student, and make it champion if it beats the present one on the same test images."""
    from pathlib import Path
    from typing import NamedTuple

    from tenfold.execution import execute

    inputs = {"student": Path(student.path), "encoder": Path(encoder.path), "evaluation": Path(evaluation.path)}
    decided = execute("promote", config, inputs, {"report": report.path, "verdict": verdict.path})
    return NamedTuple("Verdict", [("alias", str), ("version", str)])(decided.alias, decided.version)


def component(image: str):
    """Return promotion as a component that runs in ``image``."""
    return dsl.component(promote, base_image=image, install_kfp_package=False)
