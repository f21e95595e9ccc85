"""The KFP component of the exit task."""

from kfp import dsl


def finish(status: dsl.PipelineTaskFinalStatus, report: dsl.Output[dsl.HTML]):
    """End the run, however it went: its report, its status in MLflow, its left-over TrainJobs."""
    import time
    from pathlib import Path

    from tenfold.components.finish.stage import run
    from tenfold.execution import Attempt

    with Attempt("finish") as attempt:
        attempt.reporter.started()
        start = time.monotonic()
        run(status.state == "SUCCEEDED", Path(report.path), attempt.environment, attempt.reporter)
        attempt.reporter.finished(time.monotonic() - start)


def component(image: str):
    """Return the exit task as a component that runs in ``image``."""
    return dsl.component(finish, base_image=image, install_kfp_package=False)
