"""The page of a retraining that ended early, since too few images were new."""

from __future__ import annotations

from tenfold.report.render import environment


def render_stopped(run_id: str, name: str, told: str, dataset: str) -> str:
    """Return the page; it needs nothing else, as the report does.

    Args:
        run_id: identity of the pipeline run.
        name: of the run.
        told: why it ended.
        dataset: URI of the images that there are.
    """
    return environment().get_template("stopped.html.j2").render(run_id=run_id, name=name, told=told, dataset=dataset)
