"""Test results of the models that were evaluated, kept beside the data: one object a test split and student.

``predictions/<test split>/<sha256 of the weights>.json``. A test split is looked at once for each object, so their
number tells how worn it is: the best of many students that are compared on the same images looks better than it is.
"""

from __future__ import annotations

from collections.abc import Callable

from tenfold.config import PromoteConfig
from tenfold.evaluation.measured import Measured, parse_measured
from tenfold.registry.decision import Check, Decision, decide
from tenfold.registry.ledger import Ledger, taken_back
from tenfold.registry.models import Registered
from tenfold.storage import Store

#: After so many students the best one's score is told to be worn.
WORN = 20


class Results:
    """The kept test results of a store."""

    def __init__(self, store: Store) -> None:
        """Open them; nothing is read yet."""
        self._store = store

    @staticmethod
    def _key(test_split: str, weights: str) -> str:
        return f"predictions/{test_split}/{weights}.json"

    def keep(self, measured: Measured, weights: str) -> None:
        """Keep what a student with these weights reached."""
        self._store.write(self._key(measured.test_split, weights), measured.model_dump_json().encode())

    def of(self, test_split: str, weights: str) -> Measured | None:
        """Return what a student reached on a test split; None where it was never measured there.

        Raises:
            StorageError: what is there cannot be read.
        """
        key = self._key(test_split, weights)
        if not test_split or not weights or not self._store.exists(key):
            return None
        return parse_measured(self._store.read(key), f"{self._store.uri}/{key}")

    def uses(self, test_split: str) -> int:
        """Return how many students were measured on a test split."""
        return sum(1 for _ in self._store.list(f"predictions/{test_split}/"))


def judge(
    results: Results, ledger: Ledger, challenger: Registered, measured: Measured, gate: PromoteConfig
) -> Callable[[Registered | None], Decision]:
    """Return what decides about a challenger, against whoever is champion when it is asked.

    A version that a person took back would win again by the numbers that made it champion, so it never passes.
    """

    def decision(champion: Registered | None) -> Decision:
        if champion is not None and champion.version == challenger.version:
            return Decision([Check("champion", True, "this very student is the champion already")])
        known = results.of(measured.test_split, champion.weights) if champion is not None else None
        found = decide(measured, known, gate, exists=champion is not None)
        back = taken_back(ledger.entries(), challenger.version, challenger.created)
        if back is not None:
            told = (
                f"this version was champion and was taken back ({'; '.join(back.reasons)}); `tenfold promote "
                f"{challenger.version} --model {gate.model} --because …` makes it champion all the same"
            )
            found = Decision([Check("taken back", False, told), *found.checks])
        uses = results.uses(measured.test_split)
        if uses <= WORN:
            return found
        told = f"this test split has measured {uses} students: the best of so many looks better than it is; take new"
        return Decision([*found.checks, Check("test split", True, f"{told} test images soon")])

    return decision
