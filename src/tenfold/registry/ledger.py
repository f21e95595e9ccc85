"""The ledger of promotions: who became champion, in which order, and why.

One object an entry, ``promotions/<sha256 of the model's name>/00000001.json`` and so on, written by put-if-absent: of
two writers of the same number one wins, whatever MLflow does. The order is that of the numbers; the times in the
entries are for people. A second object, ``00000001.done``, says that the alias was set to the entry's version.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tenfold.errors import ConflictError, StorageError, first_fault
from tenfold.fingerprint import canonical_json, digest
from tenfold.storage import Store

#: What made an entry: the gate; somebody who approved of what passed it, went back to an earlier champion or went past
#: the gate (``tenfold promote --because``); or somebody who set the alias in MLflow.
By = Literal["promotion", "approval", "rollback", "override", "hand"]


class Entry(BaseModel):
    """One change of the champion.

    Attributes:
        number: its place in the ledger, from 1 on.
        model: name in the registry.
        version: that became champion; None: a person removed the alias.
        before: the version that was champion before; None: none was.
        by: see :data:`By`.
        reasons: why.
        who: the person, where one asked for it; empty for a pipeline.
        run_id: pipeline run that wrote the entry.
        time: when, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    model: str
    version: str | None
    before: str | None
    by: By
    reasons: list[str]
    run_id: str
    time: str
    who: str = ""


class Ledger:
    """The entries of one registered model."""

    def __init__(self, store: Store, model: str, run_id: str) -> None:
        """Open the ledger.

        Args:
            store: holds it.
            model: name in the registry.
            run_id: pipeline run in whose name entries are written.
        """
        self._store, self._model, self._run_id = store, model, run_id
        self._prefix = f"promotions/{digest(model)}/"

    def _key(self, number: int, suffix: str) -> str:
        return f"{self._prefix}{number:08d}.{suffix}"

    def _numbers(self) -> list[int]:
        names = (entry.key.removeprefix(self._prefix).partition(".") for entry in self._store.list(self._prefix))
        return sorted(int(number) for number, _, suffix in names if suffix == "json" and number.isdigit())

    def _read(self, number: int) -> Entry:
        key = self._key(number, "json")
        try:
            return Entry.model_validate_json(self._store.read(key))
        except ValidationError as error:
            raise StorageError(
                f"{self._store.uri}/{key} is no entry of a ledger of promotions: {first_fault(error.errors())}; put "
                "back what was there, or remove it with all that follow it"
            ) from None

    def entries(self) -> list[Entry]:
        """Return all entries in order.

        Raises:
            StorageError: one of them cannot be read.
        """
        return [self._read(number) for number in self._numbers()]

    def last(self) -> Entry | None:
        """Return the last entry; None if there is none.

        Raises:
            StorageError: it cannot be read.
        """
        numbers = self._numbers()
        return self._read(numbers[-1]) if numbers else None

    def append(
        self, last: Entry | None, version: str | None, by: By, reasons: list[str], who: str = ""
    ) -> Entry | None:
        """Write the entry behind ``last``; None where somebody else wrote one there first."""
        entry = Entry(
            number=last.number + 1 if last else 1, model=self._model, version=version,
            before=last.version if last else None, by=by, reasons=reasons, run_id=self._run_id,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"), who=who,
        )  # fmt: skip
        try:
            # the same bytes are this very entry: a request whose answer was lost was sent again
            self._store.create(self._key(entry.number, "json"), canonical_json(entry.model_dump()).encode())
        except ConflictError:
            return None
        return entry

    def is_done(self, entry: Entry) -> bool:
        """Tell whether the alias is known to have been set for this entry; one made by hand needs no more."""
        return entry.by == "hand" or self._store.exists(self._key(entry.number, "done"))

    def close(self, entry: Entry) -> None:
        """Record that the alias was set for this entry."""
        if entry.by != "hand":
            self._store.create(self._key(entry.number, "done"), b"done")


def taken_back(entries: Sequence[Entry], version: str, created: float) -> Entry | None:
    """Return the entry by which a person took a version back that was champion; None: nobody did.

    So is a version behind the one that a person went back to, in the line of champions, and one that lost the alias to
    none. It is forgotten once the version is champion again.

    Args:
        entries: of the ledger, in order.
        version: of the model.
        created: when it was made (Unix time); what was taken back before had its number, in a registry that is gone.
    """
    line: list[str] = []
    back: dict[str, Entry] = {}
    for entry in entries:
        gone: list[str] = []
        if entry.version is None:
            gone, line = line[-1:], []
        elif entry.version in line and entry.by in {"rollback", "override", "hand"}:
            place = line.index(entry.version) + 1
            gone, line = line[place:], line[:place]
        elif line[-1:] != [entry.version]:
            line.append(entry.version)
        if datetime.fromisoformat(entry.time).timestamp() >= created:
            back |= dict.fromkeys(gone, entry)
        if entry.version is not None:
            back.pop(entry.version, None)
    return back.get(version)
