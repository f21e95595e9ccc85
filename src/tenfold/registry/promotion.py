"""Promotion that two overlapping runs cannot both win.

MLflow's alias is set by the last writer, with no expected version and no history, so it cannot be the judge. The
ledger is: a promotion decides against the champion of the last entry, writes the next entry by put-if-absent, then
sets the alias, and then marks the entry as done. Who loses the race for a number reads again and decides anew.

Whoever comes next finds one of these:

====================  ==============================  ==========================================================
last entry            the alias names                 what happened, and what is done
====================  ==============================  ==========================================================
done or not           its version                     all is well; the mark is made where it is missing
not done              the version before it           its writer was killed, or is at work: the alias is set for it
done                  another version, or none        a person set or removed it: an entry by hand records that
not done              a third version, or none        the same
====================  ==============================  ==========================================================

An entry by hand is done from the start, since the alias says already what it records. So only a killed promotion is
repaired, and only from exactly the state in which it left the alias.

Two things look like a person's act and are none. A promotion that is between its entry and its mark: whoever finds an
alias that seems set by hand looks again after a pause, and records it only where nothing has moved. And one that was
held up just before it set the alias while others repaired its entry and went on: it looks at the ledger again
afterwards, and sets the alias to what the last entry says.

What cannot be told apart, since MLflow keeps no history: a promotion that was killed between alias and mark, followed
by a person who sets the alias back to the version before. The next promotion sets it forward once more; set back again
after that, it stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tenfold.errors import TrackingError
from tenfold.registry.decision import Decision
from tenfold.registry.ledger import By, Entry, Ledger
from tenfold.registry.models import CHAMPION, Registered, Registry

#: Seconds after which an alias that seems set by hand is looked at again.
PAUSE = 2.0
#: Each lost race is another promotion's win, so as many at once would have to be at work.
_ROUNDS = 100


@dataclass(frozen=True)
class Outcome:
    """What was decided of a version, against which champion, and the entry that it made; None where nothing changed."""

    version: str
    decision: Decision
    champion: Registered | None
    entry: Entry | None


def promote(
    registry: Registry, ledger: Ledger, challenger: Registered, judge: Callable[[Registered | None], Decision],
    prepare: Callable[[], None], tell: Callable[[str], None], by: By = "promotion", who: str = "",
) -> Outcome:  # fmt: skip
    """Make ``challenger`` champion if ``judge`` says so.

    Args:
        registry: the model.
        ledger: of that model.
        challenger: a version of it.
        judge: decides against a champion, or against none; asked again where another promotion was first.
        prepare: does what must be there before the challenger is champion; may be called more than once.
        tell: told what was repaired or found.
        by: what the ledger says of the entry.
        who: the person who asked for it.

    Raises:
        TrackingError: MLflow cannot be reached, or promotions never come to rest.
        StorageError: the ledger cannot be read or written.
    """
    for _ in range(_ROUNDS):
        last = settle(registry, ledger, tell)
        champion = registry.by_version(last.version) if last is not None and last.version is not None else None
        decision = judge(champion)
        if decision.promote:
            prepare()
        if not decision.promote or (champion is not None and champion.version == challenger.version):
            return Outcome(challenger.version, decision, champion, None)
        entry = ledger.append(last, challenger.version, by, decision.reasons, who)
        if entry is not None:
            _fulfil(registry, ledger, entry)
            return Outcome(challenger.version, decision, champion, entry)
        tell("another promotion was first; deciding again, against its champion")
    raise _restless(registry)


def settle(registry: Registry, ledger: Ledger, tell: Callable[[str], None]) -> Entry | None:
    """Bring ledger and alias together and return the last entry; see the module.

    Raises:
        TrackingError: MLflow cannot be reached, or promotions never come to rest.
        StorageError: the ledger cannot be read or written.
    """
    seen: tuple[Entry | None, str | None] | None = None
    for _ in range(_ROUNDS):
        last, holder = ledger.last(), registry.by_alias(CHAMPION)
        held = holder.version if holder is not None else None
        if held == (last.version if last is not None else None):
            if last is not None and not ledger.is_done(last):
                ledger.close(last)
            return last
        if last is not None and held == last.before and not ledger.is_done(last) and _is_there(registry, last.version):
            _fulfil(registry, ledger, last)
            tell(f"the promotion of version {last.version} had been cut off; the alias names it now")
        elif seen != (last, held):
            seen = (last, held)
            time.sleep(PAUSE)
        else:
            reasons = [_by_hand(last, held)]
            if ledger.append(last, held, "hand", reasons) is not None:
                tell(reasons[0])
    raise _restless(registry)


def _by_hand(last: Entry | None, held: str | None) -> str:
    if last is None:
        return f"version {held} was champion before there was a ledger"
    if held is None:
        return f"somebody removed the alias {CHAMPION} from version {last.version}"
    return f"somebody set the alias {CHAMPION} to version {held}"


def _is_there(registry: Registry, version: str | None) -> bool:
    """Tell whether a version was not deleted."""
    return version is not None and registry.by_version(version) is not None


def _fulfil(registry: Registry, ledger: Ledger, entry: Entry) -> None:
    """Set the alias for an entry and mark it as done, unless others have done so and gone on."""
    if ledger.is_done(entry) or ledger.last() != entry:
        return
    _point(registry, entry)
    while (last := ledger.last()) is not None and last != entry:  # others went on: what was just set is stale
        entry = last
        _point(registry, entry)
    ledger.close(entry)


def _point(registry: Registry, entry: Entry) -> None:
    if entry.version is not None:
        registry.point(CHAMPION, entry.version)
        return
    held = registry.by_alias(CHAMPION)
    if held is not None:
        registry.unpoint(CHAMPION, held.version)


def _restless(registry: Registry) -> TrackingError:
    return TrackingError(
        f"'{registry.name}': ledger and alias did not come to rest in {_ROUNDS} rounds; is another program setting the "
        f"alias {CHAMPION}? run promotion again",
        again=True,
    )
