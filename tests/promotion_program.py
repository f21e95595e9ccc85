"""Promotes one version in a process of its own, which may be killed or held up on the way.

The argument is a JSON object: ``model``, ``version``, ``scores`` by version, ``meet`` (a folder and a number of
processes that decide at once), ``kill`` and ``hold`` (what is about to be done when that happens).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tenfold.environment import Environment
from tenfold.registry import Check, Decision, Ledger, Registered, Registry, promote
from tenfold.storage import open_store


def main() -> None:
    what: dict[str, Any] = json.loads(sys.argv[1])
    environment = Environment.read()
    registry = Registry(environment, what["model"])
    ledger = Ledger(open_store(environment.store), what["model"], environment.run_id)
    challenger = registry.by_version(what["version"])
    assert challenger is not None

    def judge(champion: Registered | None) -> Decision:
        if what.get("meet"):
            _meet(Path(what["meet"][0]), what["meet"][1])
            what["meet"] = None
        its = what["scores"][champion.version] if champion else None
        return Decision([Check("score", its is None or what["scores"][challenger.version] > its, "by the score")])

    for owner in (registry, ledger):
        for name in ("append", "point", "close"):
            if hasattr(owner, name):
                setattr(owner, name, _guarded(name, getattr(owner, name), what))
    outcome = promote(registry, ledger, challenger, judge, lambda: None, lambda text: None)
    print(json.dumps({"entry": outcome.entry.number if outcome.entry else None, "promoted": outcome.decision.promote}))


def _guarded(name: str, call: Callable[..., Any], what: dict[str, Any]) -> Callable[..., Any]:
    def guarded(*arguments: Any) -> Any:
        if what.get("kill") == name:
            os.kill(os.getpid(), signal.SIGKILL)
        if what.get("hold") and what["hold"][0] == name:
            place = Path(what["hold"][1])
            what["hold"] = None
            (place / "held").touch()
            _wait(lambda: (place / "go").exists())
        return call(*arguments)

    return guarded


def _meet(folder: Path, number: int) -> None:
    (folder / f"{os.getpid()}").touch()
    _wait(lambda: len(list(folder.iterdir())) >= number)


def _wait(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not there():
        assert time.monotonic() < end, "the others never came"
        time.sleep(0.005)


main()
