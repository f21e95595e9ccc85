"""Races the other processes for the champion, round after round: in each, a version of its own against theirs.

The argument is a JSON object: ``model``, ``racer`` (its number), ``racers``, ``rounds``, and ``meet``, a folder. Its
own is version ``racers × round + racer + 1``; a version of a later round is better, those of one round are equal.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tenfold.environment import Environment
from tenfold.registry import Check, Decision, Ledger, Registered, Registry, promote
from tenfold.storage import open_store


def main() -> None:
    what: dict[str, Any] = json.loads(sys.argv[1])
    racers, folder = what["racers"], Path(what["meet"])
    environment = Environment.read()
    registry = Registry(environment, what["model"])
    ledger = Ledger(open_store(environment.store), what["model"], f"racer-{what['racer']}")

    def level(version: str) -> int:
        return (int(version) - 1) // racers

    won = []
    for number in range(what["rounds"]):
        challenger = registry.by_version(str(racers * number + what["racer"] + 1))
        assert challenger is not None
        met = False

        def judge(champion: Registered | None, version: str = challenger.version, number: int = number) -> Decision:
            nonlocal met
            if not met:  # all have decided against the same champion before one of them goes on
                met = True
                (folder / f"{number}-{what['racer']}").touch()
                end = time.monotonic() + 120
                while len(list(folder.glob(f"{number}-*"))) < racers:
                    assert time.monotonic() < end, "the others never came"
                    time.sleep(0.002)
            better = champion is None or level(version) > level(champion.version)
            return Decision([Check("level", better, "by the level")])

        outcome = promote(registry, ledger, challenger, judge, lambda: None, lambda text: None)
        if outcome.entry is not None:
            won.append([number, outcome.entry.number])
    print(json.dumps(won))


main()
