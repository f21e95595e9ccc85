"""What a person does with registered models: promote, approve, go back, and ask who was champion when, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from pydantic import ValidationError

from tenfold.config import PromoteConfig
from tenfold.environment import Environment
from tenfold.errors import ConfigError, DataError, first_fault
from tenfold.registry.decision import Check, Decision
from tenfold.registry.ledger import By, Entry, Ledger
from tenfold.registry.models import (
    APPROVAL_TAG,
    CHALLENGER,
    CHAMPION,
    ENCODER_TAG,
    GATE_TAG,
    TEST_SPLIT_TAG,
    Registered,
    Registry,
    is_version,
)
from tenfold.registry.promotion import Outcome, promote
from tenfold.registry.results import Results, judge
from tenfold.storage import open_store

Judge = Callable[[Registered | None], Decision]


class Desk:
    """One registered model and its ledger, for a person."""

    def __init__(self, environment: Environment, model: str, who: str, tell: Callable[[str], None]) -> None:
        """Open the model.

        Args:
            environment: gives MLflow and the store, which must be those that the pipeline uses.
            model: name in the registry.
            who: the person, for the ledger.
            tell: told what was repaired or found.
        """
        self._registry, self._store = Registry(environment, model), open_store(environment.store)
        self._ledger, self._results = Ledger(self._store, model, environment.run_id), Results(self._store)
        self._model, self._who, self._tell = model, who, tell

    def promote(self, version: str, because: str | None, *, dry_run: bool = False) -> Outcome:
        """Make a version champion if it passes the gate, or past the gate for a reason that the ledger keeps.

        Args:
            version: of the model.
            because: why it is promoted without asking the gate.
            dry_run: decide against the champion of now, and change nothing.

        Raises:
            DataError: there is no such version, or it was never measured and no reason is given.
        """
        challenger = self._version(version)
        if because is None:
            return self._carry_out(challenger, self._gate(challenger), "promotion", dry_run)
        reason = self._reason(because)
        return self._carry_out(challenger, lambda champion: Decision([reason]), "override", dry_run)

    def approve(self, version: str | None, *, dry_run: bool = False) -> Outcome:
        """Make a version champion that passed the gate and waits for approval; it must pass against today's champion.

        Args:
            version: of the model; the challenger unless given.
            dry_run: decide against the champion of now, and change nothing.

        Raises:
            DataError: there is no such version, or it waits for nothing.
        """
        challenger = self._registry.by_alias(CHALLENGER) if version is None else self._version(version)
        if challenger is None:
            raise DataError(f"'{self._model}' has no challenger to approve")
        if challenger.tags.get(APPROVAL_TAG) != "waiting":
            raise DataError(
                f"version {challenger.version} of '{self._model}' waits for no approval: it did not pass the gate, or "
                "promote.approval was false; `tenfold promote` asks the gate again"
            )
        outcome = self._carry_out(challenger, self._gate(challenger), "approval", dry_run)
        if outcome.decision.promote and not dry_run:
            self._registry.tag(challenger.version, APPROVAL_TAG, "approved")
        return outcome

    def rollback(self, version: str | None, because: str, *, dry_run: bool = False) -> Outcome:
        """Make an earlier champion champion again.

        Args:
            version: that was champion once; the one before today's unless given.
            because: why, for the ledger.
            dry_run: tell what would be done, and change nothing.

        Raises:
            DataError: nobody was champion before, or that version never was.
        """
        entries = self._ledger.entries()
        line = succession(entries)
        if version is None:
            if len(line) < 2:
                raise DataError(f"'{self._model}' had no champion before {f'version {line[0]}' if line else 'now'}")
            version = line[-2]
        elif version not in {entry.version for entry in entries}:
            raise DataError(f"version {version} of '{self._model}' never was champion; `tenfold promote` asks the gate")
        earlier, reason = self._version(version), self._reason(because)
        present = line[-1] if line else None

        def decision(champion: Registered | None) -> Decision:
            held = champion.version if champion is not None else None
            if held != present:
                told = f"version {held} became champion meanwhile" if held else "the champion was removed meanwhile"
                return Decision([Check("champion", False, f"{told}; look at `tenfold history` and ask again")])
            return Decision([reason])

        return self._carry_out(earlier, decision, "rollback", dry_run)

    def history(self, until: datetime | None = None) -> list[Entry]:
        """Return the ledger's entries in order, those until a moment alone where one is given.

        Raises:
            DataError: there is no such model.
        """
        entries = self._ledger.entries()
        if not entries and not self._registry.exists():
            raise DataError(f"no model '{self._model}' is registered")
        return [entry for entry in entries if until is None or datetime.fromisoformat(entry.time) <= until]

    def _version(self, version: str) -> Registered:
        found = self._registry.by_version(version) if is_version(version) else None
        if found is None:
            raise DataError(f"'{self._model}' has no version {version}; MLflow's registry lists them")
        return found

    def _reason(self, because: str) -> Check:
        told = " ".join(because.split())
        if not told:
            raise ConfigError("--because needs a reason: the ledger keeps it")
        return Check("reason", True, told)

    def _gate(self, challenger: Registered) -> Judge:
        measured = self._results.of(challenger.tags.get(TEST_SPLIT_TAG, ""), challenger.weights)
        if measured is None:
            raise DataError(
                f"{self._store.uri} holds no test results of version {challenger.version} of '{self._model}': set "
                "TENFOLD_STORE to the pipeline's store, or promote it past the gate with --because"
            )
        try:
            text = challenger.tags.get(GATE_TAG, "")
            gate = PromoteConfig.model_validate_json(text) if text else PromoteConfig(model=self._model)
        except ValidationError as error:
            raise DataError(
                f"the tag {GATE_TAG} of version {challenger.version} is no gate: {first_fault(error.errors())}"
            ) from None
        return judge(self._results, self._ledger, challenger, measured, gate)

    def _carry_out(self, challenger: Registered, decide: Judge, by: By, dry_run: bool) -> Outcome:
        if dry_run:
            champion = self._registry.by_alias(CHAMPION)
            decision, last = decide(champion), self._ledger.last()
            moved = last is not None and last.version == challenger.version and self._ledger.is_done(last)
            moved = moved and (champion is None or champion.version != challenger.version)
            if moved and by in {"promotion", "approval"}:
                told = f"somebody took the alias {CHAMPION} from this version; --because makes it champion all the same"
                decision = Decision([Check("taken back", False, told), *decision.checks])
            outcome = Outcome(challenger.version, decision, champion, None)
            if outcome.decision.promote and (champion is None or champion.version != challenger.version):
                self._tell_of_encoder(challenger)
            return outcome
        outcome = promote(self._registry, self._ledger, challenger, decide, lambda: None, self._tell, by, self._who)
        if outcome.decision.promote:
            self._registry.unpoint(CHALLENGER, challenger.version)
            if outcome.entry is not None:
                self._tell_of_encoder(challenger)
        return outcome

    def _tell_of_encoder(self, challenger: Registered) -> None:
        if not challenger.tags.get(ENCODER_TAG):
            self._tell("no encoder was kept of this version, so a retraining will start from scratch")


def succession(entries: Sequence[Entry]) -> list[str]:
    """Return the champions in the order in which they followed each other, without those that were gone back from.

    The last one is champion now; a rollback goes to the one before it. Empty where an alias was removed by hand.
    """
    line: list[str] = []
    for entry in entries:
        if entry.version is None:
            line = []
        elif entry.by == "rollback" and entry.version in line:
            del line[line.index(entry.version) + 1 :]
        elif not line or line[-1] != entry.version:
            line.append(entry.version)
    return line
