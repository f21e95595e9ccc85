"""Promotions that race each other or are killed on the way: a real MLflow server, real stores, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tenfold.environment import Environment
from tenfold.errors import StorageError
from tenfold.registry import CHAMPION, Check, Decision, Ledger, Outcome, Registered, Registry, promote, promotion
from tenfold.storage import open_store

PROGRAM = Path(__file__).parents[1] / "promotion_program.py"


class Model:
    """A registered model with some versions, of which each has a score."""

    def __init__(self, name: str, scores: dict[str, float], folder: Path) -> None:
        self.name, self.scores, self.folder = name, scores, folder
        self.environment = Environment.read()
        self.client = MlflowClient(self.environment.tracking_uri, self.environment.tracking_uri)
        self.client.create_registered_model(name)
        for version in scores:
            made = self.client.create_model_version(name, "s3://nowhere/nothing")
            assert str(made.version) == version
        self.registry = Registry(self.environment, name)
        self.told: list[str] = []

    @property
    def ledger(self) -> Ledger:
        return Ledger(open_store(self.environment.store), self.name, "here")

    @property
    def champion(self) -> str | None:
        held = self.registry.by_alias(CHAMPION)
        return held.version if held else None

    def entries(self) -> list[tuple[int, str | None, str | None, str]]:
        return [(each.number, each.version, each.before, each.by) for each in self.ledger.entries()]

    def promote(self, version: str) -> Outcome:
        """Promote here."""
        challenger = self.registry.by_version(version)
        assert challenger is not None

        def judge(champion: Registered | None) -> Decision:
            its = self.scores[champion.version] if champion else None
            return Decision([Check("score", its is None or self.scores[version] > its, "by the score")])

        return promote(self.registry, self.ledger, challenger, judge, lambda: None, self.told.append)

    def start(self, version: str, **what: Any) -> subprocess.Popen[str]:
        """Promote in a process of its own."""
        command = [sys.executable, "-W", "ignore", str(PROGRAM),
                   json.dumps({"model": self.name, "version": version, "scores": self.scores, **what})]  # fmt: skip
        environment = {
            **os.environ, "TENFOLD_STORE": self.environment.store, "TENFOLD_RUN_ID": f"run-of-{version}",
            "MLFLOW_TRACKING_URI": self.environment.tracking_uri,
        }  # fmt: skip
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def race(self, *versions: str) -> dict[str, dict[str, Any]]:
        """Promote these at once, each having decided against the same champion; return what each came to."""
        meeting = self.folder / f"meeting-{versions[0]}"
        meeting.mkdir()
        processes = {version: self.start(version, meet=[str(meeting), len(versions)]) for version in versions}
        return {version: json.loads(process.communicate(timeout=240)[0]) for version, process in processes.items()}

    def kill(self, version: str, before: str) -> None:
        """Promote in a process that is killed when it is about to do something."""
        process = self.start(version, kill=before)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL

    def by_hand(self, version: str) -> None:
        self.client.set_registered_model_alias(self.name, CHAMPION, version)


@pytest.fixture
def model(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, float]], Model]:
    """Make the registered model of this test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setattr(promotion, "PAUSE", 0.05)
    return lambda scores: Model(tmp_path.name, scores, tmp_path)


@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.slow), "s3"])
def test_of_equal_students_that_race_one_becomes_champion_by_one_entry_a_round(
    kind: str, model: Callable[[dict[str, float]], Model], request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if kind == "s3":
        monkeypatch.setenv("TENFOLD_STORE", f"{request.getfixturevalue('s3')}/store")
    made = model({"1": 0.6, "2": 0.6, "3": 0.6, "4": 0.7, "5": 0.7, "6": 0.7})
    champions: list[str | None] = []
    for number, racers in enumerate((("1", "2", "3"), ("4", "5", "6")), start=1):
        found = made.race(*racers)
        winners = [version for version, came in found.items() if came["promoted"]]
        assert [found[version]["entry"] for version in winners] == [number]
        assert made.champion == winners[0]
        assert made.entries()[number - 1 :] == [(number, winners[0], champions[-1] if champions else None, "promotion")]
        champions.append(winners[0])


@pytest.mark.slow
def test_of_eight_processes_that_race_for_fifty_rounds_one_wins_each_round_by_one_entry(
    model: Callable[[dict[str, float]], Model], tmp_path: Path
) -> None:
    racers, rounds = 8, 50
    made = model({str(version): 0.0 for version in range(1, racers * rounds + 1)})
    (tmp_path / "met").mkdir()
    environment = {**os.environ, "TENFOLD_STORE": made.environment.store,
                   "MLFLOW_TRACKING_URI": made.environment.tracking_uri}  # fmt: skip
    processes = []
    for racer in range(racers):
        what = {"model": made.name, "racer": racer, "racers": racers, "rounds": rounds, "meet": str(tmp_path / "met")}
        command = [sys.executable, "-W", "ignore", str(PROGRAM.with_name("race_program.py")), json.dumps(what)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    won = [entry for process in processes for entry in json.loads(process.communicate(timeout=900)[0])]
    assert sorted(won) == [[number, number + 1] for number in range(rounds)], "one winner and one entry a round"
    entries = made.entries()
    assert [(int(version or 0) - 1) // racers for _, version, _, _ in entries] == list(range(rounds))
    assert [before for _, _, before, _ in entries] == [None, *(version for _, version, _, _ in entries[:-1])]
    assert {by for _, _, _, by in entries} == {"promotion"}
    assert made.champion == entries[-1][1]


def test_the_best_of_students_that_race_is_champion_in_the_end_whoever_was_first(
    model: Callable[[dict[str, float]], Model],
) -> None:
    made = model({"1": 0.5, "2": 0.6, "3": 0.7, "4": 0.8})
    found = made.race("1", "2", "3", "4")
    assert made.champion == "4"
    entries = made.ledger.entries()
    assert sorted(came["entry"] for came in found.values() if came["promoted"]) == [e.number for e in entries]
    line = [entry.version for entry in entries]
    assert [entry.before for entry in entries] == [None, *line[:-1]]
    assert line == sorted(line, key=lambda version: made.scores[version or ""]), "each is better than the one before"
    assert entries[-1].run_id == "run-of-4"


@pytest.mark.parametrize(("before", "repaired"), [("append", False), ("point", True), ("close", True)])
def test_a_promotion_that_was_killed_is_as_if_it_never_was_or_is_brought_to_its_end_by_the_next(
    before: str, repaired: bool, model: Callable[[dict[str, float]], Model]
) -> None:
    made = model({"1": 0.5, "2": 0.7, "3": 0.6})
    made.promote("1")
    made.kill("2", before)
    assert made.champion == ("2" if before == "close" else "1")
    outcome = made.promote("3")
    assert made.champion == ("2" if repaired else "3")
    assert outcome.decision.promote is not repaired
    assert made.entries()[1:] == [(2, "2" if repaired else "3", "1", "promotion")]
    assert made.ledger.is_done(made.ledger.entries()[-1])
    assert any("had been cut off" in text for text in made.told) is (before == "point")


def test_the_first_promotion_of_all_that_was_killed_before_the_alias_is_repaired(
    model: Callable[[dict[str, float]], Model],
) -> None:
    made = model({"1": 0.6, "2": 0.5})
    made.kill("1", "point")
    assert made.champion is None
    assert not made.promote("2").decision.promote
    assert made.champion == "1"
    assert made.entries() == [(1, "1", None, "promotion")]


def test_an_alias_that_a_person_set_is_respected_and_recorded(model: Callable[[dict[str, float]], Model]) -> None:
    made = model({"1": 0.5, "2": 0.7, "3": 0.6})
    made.promote("1")
    made.promote("2")
    made.by_hand("1")
    assert made.promote("3").decision.promote, "it is better than the one that the person chose"
    assert made.champion == "3"
    assert made.entries()[2:] == [(3, "1", "2", "hand"), (4, "3", "1", "promotion")]
    assert "set the alias champion to version 1" in made.told[0]


def test_an_alias_that_a_person_removed_leaves_no_champion_to_beat(model: Callable[[dict[str, float]], Model]) -> None:
    made = model({"1": 0.7, "2": 0.5})
    made.promote("1")
    made.client.delete_registered_model_alias(made.name, CHAMPION)
    assert made.promote("2").decision.promote
    assert made.entries() == [(1, "1", None, "promotion"), (2, None, "1", "hand"), (3, "2", None, "promotion")]
    assert made.champion == "2"


def test_a_champion_from_before_the_ledger_is_its_first_entry(model: Callable[[dict[str, float]], Model]) -> None:
    made = model({"1": 0.7, "2": 0.5})
    made.by_hand("1")
    assert not made.promote("2").decision.promote
    assert made.champion == "1"
    assert made.entries() == [(1, "1", None, "hand")]


@pytest.mark.parametrize("before", ["point", "close"])
def test_a_person_who_sets_another_version_after_a_killed_promotion_is_not_overruled(
    before: str, model: Callable[[dict[str, float]], Model]
) -> None:
    made = model({"1": 0.5, "2": 0.8, "3": 0.6, "4": 0.1})
    made.promote("1")
    made.kill("2", before)
    made.by_hand("3")
    assert not made.promote("4").decision.promote
    assert made.champion == "3"
    assert made.entries()[1:] == [(2, "2", "1", "promotion"), (3, "3", "2", "hand")]


def test_a_person_who_sets_the_alias_back_and_forth_after_a_recorded_act_is_not_overruled(
    model: Callable[[dict[str, float]], Model],
) -> None:
    made = model({"1": 0.5, "2": 0.8, "3": 0.1})
    made.promote("1")
    made.promote("2")
    for version in ("1", "2", "1"):
        made.by_hand(version)
        made.promote("3")
        assert made.champion == version
    assert made.entries()[2:] == [(3, "1", "2", "hand"), (4, "2", "1", "hand"), (5, "1", "2", "hand")]


def test_one_that_was_held_up_before_the_alias_does_not_undo_what_others_did_since(
    model: Callable[[dict[str, float]], Model],
) -> None:
    made = model({"1": 0.5, "2": 0.6})
    held = made.start("1", hold=["point", str(made.folder)])
    end = time.monotonic() + 60
    while not (made.folder / "held").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert made.promote("2").decision.promote
    assert made.champion == "2"
    (made.folder / "go").touch()
    assert json.loads(held.communicate(timeout=60)[0])["entry"] == 1
    assert made.champion == "2", "its late act is put right by itself"
    assert made.entries() == [(1, "1", None, "promotion"), (2, "2", "1", "promotion")]


def test_a_version_that_was_deleted_before_its_alias_came_is_passed_over(
    model: Callable[[dict[str, float]], Model],
) -> None:
    made = model({"1": 0.5, "2": 0.8, "3": 0.6})
    made.promote("1")
    made.kill("2", "point")
    made.client.delete_model_version(made.name, "2")
    assert made.promote("3").decision.promote
    assert made.champion == "3"
    assert made.entries()[1:] == [(2, "2", "1", "promotion"), (3, "1", "2", "hand"), (4, "3", "1", "promotion")]


def test_the_same_student_again_makes_no_entry(model: Callable[[dict[str, float]], Model]) -> None:
    made = model({"1": 0.5})
    made.promote("1")
    again = made.promote("1")
    assert again.entry is None
    assert made.entries() == [(1, "1", None, "promotion")]


def test_a_damaged_entry_stops_promotion_and_is_named(model: Callable[[dict[str, float]], Model]) -> None:
    made = model({"1": 0.5, "2": 0.6})
    made.promote("1")
    store = open_store(made.environment.store)
    (key,) = (entry.key for entry in store.list("promotions/") if entry.key.endswith(".json"))
    store.write(key, b"{}")
    with pytest.raises(StorageError, match=f"{key} is no entry of a ledger"):
        made.promote("2")
    assert made.champion == "1"


def test_two_models_have_a_ledger_each(model: Callable[[dict[str, float]], Model]) -> None:
    made = model({"1": 0.5})
    made.promote("1")
    other = Ledger(open_store(made.environment.store), f"{made.name}-2", "here")
    assert other.last() is None
