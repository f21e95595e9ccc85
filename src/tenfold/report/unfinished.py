"""The page of a run that did not come to its end: which tasks ended, how, and what they said."""

from __future__ import annotations

from tenfold.report.render import environment
from tenfold.tracking import TaskEnd


def render_unfinished(run_id: str, tasks: list[TaskEnd]) -> str:
    """Return the page; it needs nothing else, as the report does.

    Args:
        run_id: identity of the pipeline run.
        tasks: what MLflow knows of its tasks, in the order in which they began.
    """
    return environment().get_template("unfinished.html.j2").render(run_id=run_id, tasks=tasks)
