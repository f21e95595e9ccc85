"""What a person does with registered models, by the command line, against a real MLflow server."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.cli.options import errors
from tenfold.cli.promotion import _moment
from tenfold.config import PromoteConfig
from tenfold.environment import Environment
from tenfold.errors import ConfigError, DataError, TenfoldError
from tenfold.evaluation.measured import Measured
from tenfold.fingerprint import canonical_json
from tenfold.registry import (
    APPROVAL_TAG,
    CHALLENGER,
    CHAMPION,
    GATE_TAG,
    TEST_SPLIT_TAG,
    WEIGHTS_TAG,
    Entry,
    Ledger,
    Registry,
    Results,
    promotion,
)
from tenfold.registry.desk import succession
from tenfold.registry.ledger import taken_back
from tenfold.storage import open_store

SPLIT = "s" * 64


class Place:
    """A registered model with versions that have test results in the store, and the commands for it."""

    def __init__(self, name: str) -> None:
        self.name, self.environment = name, Environment.read()
        self.client = MlflowClient(self.environment.tracking_uri, self.environment.tracking_uri)
        self.client.create_registered_model(name)
        self.registry, self.store = Registry(self.environment, name), open_store(self.environment.store)

    def version(self, right: int, **gate: Any) -> str:
        """Register a version with ``right`` of 100 test images right."""
        made = str(self.client.create_model_version(self.name, "s3://nowhere/nothing").version)
        predicted = [int(number >= right) for number in range(100)]
        measured = Measured(
            test_split=SPLIT, view="v", classes=["a", "b"], truth=[0] * 100, predicted=predicted, latency_ms=3.0
        )
        Results(self.store).keep(measured, f"weights-{made}")
        config = PromoteConfig(model=self.name, **gate)
        for key, value in ((WEIGHTS_TAG, f"weights-{made}"), (TEST_SPLIT_TAG, SPLIT),
                           (GATE_TAG, canonical_json(config.model_dump()))):  # fmt: skip
            self.registry.tag(made, key, value)
        return made

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--model", self.name])

    def refused(self, *arguments: str) -> TenfoldError:
        error = self(*arguments).exception
        assert isinstance(error, TenfoldError), error
        return error

    @property
    def champion(self) -> str | None:
        held = self.registry.by_alias(CHAMPION)
        return held.version if held else None

    def entries(self) -> list[Entry]:
        return Ledger(self.store, self.name, "test").entries()


@pytest.fixture
def place(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setattr(promotion, "PAUSE", 0.05)
    monkeypatch.setattr(errors, "file", None)  # where output goes now, not where it went when this was imported
    return Place(tmp_path.name)


def test_a_person_asks_the_gate_and_only_who_passes_becomes_champion(place: Place) -> None:
    first, worse, better = place.version(70), place.version(60), place.version(90)
    told = place("promote", first, "--dry-run")
    assert told.exit_code == 0
    assert f"version {first}: would be champion; now: none" in told.output
    assert "no encoder was kept of this version" in told.output
    assert (place.champion, place.entries()) == (None, []), "nothing is changed by looking"
    assert place("promote", first).exit_code == 0
    assert place.champion == first
    refused = place("promote", worse)
    assert refused.exit_code == 1
    assert "failed  top-1 60.00% against the champion's 70.00%" in refused.output
    assert f"not promoted; champion: version {first}" in refused.output
    assert place("promote", better).exit_code == 0
    assert [(entry.version, entry.by) for entry in place.entries()] == [(first, "promotion"), (better, "promotion")]
    assert all(entry.who for entry in place.entries())
    assert "was champion already" in place("promote", better).output
    assert "was champion already" in place("promote", better, "--dry-run").output
    assert len(place.entries()) == 2


def test_past_the_gate_goes_only_who_says_why_and_the_ledger_keeps_it(place: Place) -> None:
    first, worse = place.version(70), place.version(60)
    place("promote", first)
    assert isinstance(place.refused("promote", worse, "--because", " "), ConfigError)
    told = place("promote", worse, "--because", "the old one\n knows no night pictures")
    assert told.exit_code == 0
    assert "no encoder was kept" in told.output
    entry = place.entries()[-1]
    assert (entry.version, entry.by, entry.reasons) == (worse, "override", ["the old one knows no night pictures"])


def test_the_gate_of_a_version_is_that_of_its_run(place: Place) -> None:
    slow = place.version(90, max_latency_ms=2)
    told = place("promote", slow)
    assert told.exit_code == 1
    assert "failed  latency 3.0 ms, over 2 ms" in told.output


def test_what_is_not_there_or_was_never_measured_is_named(place: Place) -> None:
    assert "has no version 7" in str(place.refused("promote", "7"))
    assert "has no version champion" in str(place.refused("promote", "champion"))
    bare = str(place.client.create_model_version(place.name, "s3://nowhere/nothing").version)
    assert "holds no test results of version" in str(place.refused("promote", bare))
    place.registry.tag(bare, TEST_SPLIT_TAG, SPLIT)
    made = place.version(70)
    place.registry.tag(made, GATE_TAG, '{"min_gain": "much"}')
    assert f"the tag {GATE_TAG} of version {made} is no gate: min_gain" in str(place.refused("promote", made))
    assert isinstance(place.refused("approve"), DataError)
    assert "waits for no approval" in str(place.refused("approve", made))
    assert "had no champion before now" in str(place.refused("rollback", "--because", "x"))
    assert "had no champion yet" in place("history").output
    unknown = CliRunner().invoke(app, ["history", "--model", f"{place.name}-nope"]).exception
    assert f"no model '{place.name}-nope' is registered" in str(unknown)


def test_who_waits_for_approval_must_still_be_better_when_it_is_given(place: Place) -> None:
    first, second, third = place.version(60), place.version(80), place.version(95)
    place("promote", first)
    place.registry.tag(second, APPROVAL_TAG, "waiting")
    place.registry.point(CHALLENGER, second)
    assert "would be champion" in place("approve", "--dry-run").output
    place("promote", third)
    late = place("approve")
    assert late.exit_code == 1
    assert "80.00% against the champion's 95.00%" in late.output
    place("rollback", "--because", "the third was labelled by mistake")
    given = place("approve")
    assert given.exit_code == 0, given.output
    assert place.champion == second
    assert (place.entries()[-1].by, place.entries()[-1].version) == ("approval", second)
    assert place.registry.by_alias(CHALLENGER) is None
    again = place.refused("approve", second)
    assert "waits for no approval" in str(again)


def test_going_back_leads_to_the_champion_before_and_further_to_the_one_before_that(place: Place) -> None:
    versions = [place.version(right) for right in (50, 70, 90)]
    for version in versions:
        place("promote", version)
    told = place("rollback", "--because", "slow at night", "--dry-run").output
    assert f"version {versions[1]}: would be champion; now: version {versions[2]}" in told
    assert place.champion == versions[2]
    assert place("rollback", "--because", "slow at night").exit_code == 0
    assert place.champion == versions[1]
    assert place("rollback", "--because", "still slow").exit_code == 0
    assert place.champion == versions[0]
    assert "had no champion before version" in str(place.refused("rollback", "--because", "more"))
    assert "never was champion" in str(place.refused("rollback", "--because", "x", "--to", place.version(10)))
    assert place("rollback", "--because", "it was the network", "--to", versions[2]).exit_code == 0
    assert place.champion == versions[2]
    assert place("rollback", "--because", "again").exit_code == 0
    assert place.champion == versions[0], "the champion before it on the day of the way back"


def test_a_rollback_that_another_promotion_overtakes_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (place.version(right) for right in (50, 70, 90))
    place("promote", first)
    place("promote", second)
    settle = promotion.settle

    def overtaken(registry: Registry, ledger: Ledger, tell: Callable[[str], None]) -> Entry | None:
        if place.champion == second:
            monkeypatch.setattr(promotion, "settle", settle)
            place("promote", third)
        return settle(registry, ledger, tell)

    monkeypatch.setattr(promotion, "settle", overtaken)
    told = place("rollback", "--because", "slow")
    assert told.exit_code == 1
    assert f"version {third} became champion meanwhile" in told.output
    assert place.champion == third


def test_history_tells_who_was_champion_when_and_why(place: Place) -> None:
    assert "had no champion yet" in place("history").output
    first, second = place.version(50), place.version(80)
    place("promote", first)
    place("promote", second)
    shown = place("history").output.splitlines()
    assert shown[0].split() == ["when", "champion", "before", "by", "who", "why"]
    assert "no version was champion before" in shown[1]
    assert "80.00% against the champion's 50.00%" in shown[2]
    listed = json.loads(place("history", "--json").output)
    assert [entry["version"] for entry in listed] == [first, second]
    (then,) = json.loads(place("history", "--json", "--on", listed[0]["time"]).output)
    assert then["version"] == first
    (today,) = json.loads(place("history", "--json", "--on", listed[1]["time"][:10]).output)
    assert today["version"] == second
    assert "had no champion by 2001-01-01" in place("history", "--on", "2001-01-01").output
    assert "--on yesterday is neither a day" in str(place.refused("history", "--on", "yesterday"))


def entry(number: int, version: str | None, by: Any) -> Entry:
    return Entry(number=number, model="m", version=version, before=None, by=by, reasons=[], run_id="r",
                 time="2025-11-24T00:00:00+00:00")  # fmt: skip


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        ([("1", "promotion"), ("2", "promotion"), ("1", "rollback")], {"2"}),
        ([("1", "promotion"), ("2", "promotion"), ("3", "promotion"), ("1", "rollback")], {"2", "3"}),
        ([("1", "promotion"), ("2", "promotion"), ("1", "override")], {"2"}),
        ([("1", "promotion"), ("2", "promotion"), ("1", "hand")], {"2"}),
        ([("1", "promotion"), ("2", "promotion"), ("1", "rollback"), ("2", "rollback")], set()),
        ([("1", "promotion"), ("2", "promotion"), ("1", "rollback"), ("2", "override")], set()),
        ([("1", "promotion"), ("2", "promotion"), ("1", "rollback"), ("3", "promotion")], {"2"}),
        ([("1", "promotion"), ("2", "hand")], set()),
        ([("1", "promotion"), ("2", "promotion"), (None, "hand")], {"2"}),
        ([("1", "promotion"), (None, "hand"), ("1", "hand")], set()),
        ([], set()),
    ],
)
def test_what_was_taken_back_is_what_lies_behind_the_version_that_somebody_went_back_to(
    acts: list[tuple[str | None, Any]], expected: set[str]
) -> None:
    entries = [entry(number, version, by) for number, (version, by) in enumerate(acts, start=1)]
    assert {version for version in "123" if taken_back(entries, version, 0)} == expected
    later = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert not any(taken_back(entries, version, later) for version in "123"), "others had these numbers before"


def test_the_line_of_champions_leaves_out_those_that_were_gone_back_from() -> None:
    acts = [("1", "promotion"), ("2", "promotion"), ("3", "approval"), ("2", "rollback"), ("4", "override")]
    entries = [entry(number, version, by) for number, (version, by) in enumerate(acts, start=1)]
    assert succession(entries) == ["1", "2", "4"]
    assert succession([*entries, entry(6, None, "hand")]) == []
    assert succession([*entries, entry(6, None, "hand"), entry(7, "5", "promotion")]) == ["5"]
    assert succession([*entries, entry(6, "3", "rollback")]) == ["1", "2", "4", "3"]
    assert succession([]) == []


@pytest.mark.parametrize("name", ["it's", 'a"b', "a/b", ""])
def test_a_name_that_the_registry_cannot_be_asked_for_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no model can be called"):
        Registry(Environment.read(), name)
    with pytest.raises(ValueError, match="model"):
        PromoteConfig(model=name)


@pytest.mark.parametrize(("day", "end"), [("2026-11-24", 25), ("20261124", 25), ("2026-11-24T10:00", 24)])
def test_a_day_is_meant_to_its_end(day: str, end: int) -> None:
    assert _moment(day).day == end
    assert _moment("9999-12-31").year == 9999
