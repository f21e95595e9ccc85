"""The commands for registered models: promote, approve, go back, and their history."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.cluster import tell
from tenfold.cli.local_run import DEFAULT_MODEL
from tenfold.cli.options import errors
from tenfold.environment import Environment
from tenfold.errors import ConfigError

if TYPE_CHECKING:  # MLflow takes its time to load
    from tenfold.registry import Desk, Outcome

Model = Annotated[str, typer.Option(help="Name in MLflow's registry.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Decide, and change nothing.")]


def add_promotion_commands(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("promote")(promote)
    app.command("approve")(approve)
    app.command("rollback")(rollback)
    app.command("history")(history)


def promote(
    version: Annotated[str, typer.Argument(help="Version of the model, for example 3.")],
    model: Model = DEFAULT_MODEL,
    because: Annotated[str | None, typer.Option(help="Why it is promoted without asking the gate.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Make a version champion if it passes the gate of its run, or past the gate for a reason."""
    _show(_desk(model).promote(version, because, dry_run=dry_run), model, dry_run)


def approve(
    version: Annotated[str | None, typer.Argument(help="Version of the model; the challenger if left out.")] = None,
    model: Model = DEFAULT_MODEL,
    dry_run: DryRun = False,
) -> None:
    """Make a version champion that passed the gate and waits for approval (promote.approval)."""
    _show(_desk(model).approve(version, dry_run=dry_run), model, dry_run)


def rollback(
    because: Annotated[str, typer.Option(help="Why; the ledger keeps it.")],
    to: Annotated[str | None, typer.Option(help="A version that was champion; the one before if left out.")] = None,
    model: Model = DEFAULT_MODEL,
    dry_run: DryRun = False,
) -> None:
    """Make an earlier champion champion again."""
    _show(_desk(model).rollback(to, because, dry_run=dry_run), model, dry_run)


def history(
    model: Model = DEFAULT_MODEL,
    on: Annotated[str | None, typer.Option(help="A day (2026-11-23), or a moment in ISO form; UTC.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List who became champion, when and why; with --on, who was champion at the end of that day."""
    from tenfold.cli.runs import table

    until = None if on is None else _moment(on)  # before anything is opened
    entries = _desk(model).history(until)
    if on is not None:
        entries = entries[-1:]
    if as_json:
        tell(json.dumps([entry.model_dump() for entry in entries], indent=1))
    elif not entries:
        errors.print(f"{model} had no champion{f' by {on}' if on else ' yet'}", highlight=False, markup=False)
    else:
        rows = [
            {"when": entry.time[:16].replace("T", " "), "champion": entry.version or "none", "before": entry.before,
             "by": entry.by, "who": entry.who or entry.run_id, "why": "; ".join(entry.reasons)}
            for entry in entries
        ]  # fmt: skip
        for line in table(["when", "champion", "before", "by", "who", "why"], rows):
            tell(line)


def _desk(model: str) -> Desk:
    from tenfold.registry import Desk

    def told(text: str) -> None:
        errors.print(text, highlight=False, markup=False, soft_wrap=True)

    return Desk(Environment.read(), model, _user(), told)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return "unknown"


def _show(outcome: Outcome, model: str, dry_run: bool) -> None:
    for check in outcome.decision.checks:
        tell(f"{'passed' if check.passed else 'failed'}  {check.told}")
    subject = f"{model} version {outcome.version}"
    held = f"version {outcome.champion.version}" if outcome.champion is not None else "none"
    if outcome.decision.promote and outcome.champion is not None and outcome.champion.version == outcome.version:
        tell(f"{subject}: was champion already")
    elif outcome.decision.promote:
        tell(f"{subject}: would be champion; now: {held}" if dry_run else f"{subject}: is champion; before: {held}")
    else:
        tell(f"{subject}: not promoted; champion: {held}")
        raise typer.Exit(1)


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--on {text} is neither a day like 2026-11-23 nor a moment in ISO form") from None
    try:
        if "T" not in text and " " not in text:  # a day, in any of ISO's forms: its end
            found += timedelta(days=1)
    except OverflowError:
        found = datetime.max
    return found if found.tzinfo else found.replace(tzinfo=UTC)
