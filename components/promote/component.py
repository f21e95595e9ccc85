"""The KFP component of promotion."""

from typing import NamedTuple

from kfp import dsl


def promote(
    config: str, student: dsl.Input[dsl.Model], evaluation: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.HTML], verdict: dsl.Output[dsl.Markdown],
) -> NamedTuple("Verdict", [("alias", str), ("version", str)]):  # fmt: skip
    """Register the student, and make it champion if it beats the present one on the same test images."""
    from pathlib import Path
    from typing import NamedTuple

    from tenfold.components.promote.stage import Inputs, Outputs, run
    from tenfold.config import PromoteConfig
    from tenfold.execution import execute

    inputs = Inputs(Path(student.path), Path(evaluation.path))
    outputs = Outputs(Path(report.path), Path(verdict.path))
    decided = execute("promote", run, PromoteConfig, config, inputs, outputs)
    return NamedTuple("Verdict", [("alias", str), ("version", str)])(decided.alias, decided.version)


def component(image: str):
    """Return promotion as a component that runs in ``image``."""
    return dsl.component(promote, base_image=image, install_kfp_package=False)
