"""Why a served value is not the one that is expected: the first cause that what is stored proves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.definitions import FeatureView
from featurestore.quality.before import Change
from featurestore.quality.past import PUSH, PUSH_US, RELEASE, RUN, Arrival, Past, Withdrawn
from featurestore.quality.rows import Key, LogRow, LogRows
from featurestore.served.hashing import NO_KEY, LogKey

CAUSES = {
    "not published": "committed, and not yet published when it was served",
    "publishing": "served while it was being published",
    "released": "the row was set aside, and released only after it was served",
    "late": "committed only after it was served",
    "corrected": "a correction of the same event, committed only after it was served",
    "pushed online": "the record was pushed online only",
    "withdrawn": "the row was withdrawn since",
    "in no commit": "the record is in no commit that is known",
    "ttl": "the view's ttl is another one now",
    "definition": "the definition is another one now",
    "damaged": "the record's checksum is not that of its row",
    "clocks": "the clocks were further apart than the instants are",
    "unexplained": "nothing that is stored explains it",
}
"""Every cause, in words, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class ServedRecord:
    """What the log says of the record behind a served value; times are None where there was none."""

    event_us: int | None
    created_us: int | None
    crc: int | None
    """As the log has it, None also where it keeps none."""
    schema: str | None
    key: LogKey = NO_KEY
    """Of the row's hashes, and its checksum."""

    def may_be(self, crc: int) -> bool:
        """Tell whether a record of this checksum may be the one that was served."""
        return self.crc is None or self.key.checksum(crc) == self.crc


@dataclass(frozen=True, slots=True)
class Question:
    """One served value of one view."""

    key: Key
    at_us: int
    ahead_us: int
    """How far clocks may have been apart, 0 where that is unknown."""
    served: ServedRecord
    expected: LogRow | None
    """The row that should have been served."""
    change: Change | None = None
    """What of the view's definition changed since, as far as the value depends on it."""
    remade: Callable[[Arrival], bool] = lambda arrival: arrival.origin == RUN
    """Tells whether a commit's rows were made by another definition than the one that was served."""


class Causes:
    """Tells causes of one view."""

    def __init__(self, view: FeatureView, past: Past, rows: LogRows) -> None:
        self._view, self._past, self._rows = view, past, rows

    def of(self, asked: Question) -> str:
        """Return the cause of a difference, one of `CAUSES`."""
        expected, served = asked.expected, asked.served
        arrival = None if expected is None else self._past.arrival(expected.sequence)
        if expected is not None and arrival is not None:
            is_same_event = served.event_us == expected.event_us
            if (found := on_its_way(arrival, asked.at_us, corrects=is_same_event)) is not None:
                return "definition" if found == "corrected" and is_redefined(asked, arrival) else found
        if served.event_us is not None and self._is_being_published(asked, served.event_us):
            return "publishing"
        if served.event_us is not None and (found := self._of_record(asked, served.event_us)) is not None:
            return found
        if asked.change is not None and (asked.change.of == "definition" or self._is_of_ttl(asked, asked.change)):
            return asked.change.of
        if served.event_us is not None and self._is_damaged(asked, served.event_us):
            return "damaged"
        return "clocks" if self._is_of_clocks(asked, arrival) else "unexplained"

    def _of_record(self, asked: Question, event_us: int) -> str | None:
        """Return why there was another record."""
        served = asked.served
        if same := self._rows.same(asked.key, event_us, served.created_us):
            gone = [row.withdrawn for row in same if row.withdrawn is not None]
            return next((found for each in gone if (found := leaving(each, asked.at_us)) is not None), None)
        if served.crc is not None and self._past.pushed.had(served.crc, asked.at_us, served.key):
            return "pushed online"
        lost = [each for each in self._rows.lost if each.start_us <= event_us < each.end_us]
        if (found := next((found for each in lost if (found := leaving(each, asked.at_us))), None)) is not None:
            return found
        return None if asked.change is not None else "in no commit"

    def _is_of_ttl(self, asked: Question, change: Change) -> bool:
        """Tell whether a row had expired by the ttl of then and counts by that of now, or the other way round."""
        rows = [asked.served.event_us, None if asked.expected is None else asked.expected.event_us]
        ttls = [change.before.view.ttl_us, self._view.ttl_us]
        counts = [[ttl is None or asked.at_us - ttl <= event_us for ttl in ttls] for event_us in rows if event_us]
        return any(then != now for then, now in counts)

    def _is_being_published(self, asked: Question, event_us: int) -> bool:
        """Tell whether the served record went online in a publish that was under way."""
        arrivals = [
            self._past.arrival(row.sequence)
            for row in self._rows.same(asked.key, event_us, asked.served.created_us)
            if asked.served.may_be(row.crc)
        ]
        return any(each is not None and is_under_way(each, asked.at_us) for each in arrivals)

    def _is_damaged(self, asked: Question, event_us: int) -> bool:
        served = asked.served
        same = self._rows.same(asked.key, event_us, served.created_us)
        return bool(same) and served.schema == self._rows.schema and not any(served.may_be(row.crc) for row in same)

    def _is_of_clocks(self, asked: Question, arrival: Arrival | None) -> bool:
        if not asked.ahead_us:
            return False
        instants = [asked.served.event_us, asked.served.created_us]
        if asked.expected is not None:
            instants += [asked.expected.event_us, asked.expected.created_us]
        if arrival is not None:
            instants += [arrival.committed_us, arrival.started_us, arrival.finished_us]
        if self._view.ttl_us is not None:
            instants += [each + self._view.ttl_us for each in instants[:3:2] if each is not None]
        return any(each is not None and abs(each - asked.at_us) <= asked.ahead_us for each in instants)


def on_its_way(arrival: Arrival, at_us: int, *, corrects: bool) -> str | None:
    """Return why rows of a commit were not served at an instant; None where they were online, as far as is known."""
    if arrival.committed_us is not None and arrival.committed_us > at_us:
        if arrival.origin == RELEASE:
            return "released"
        return "corrected" if corrects else "late"
    if is_under_way(arrival, at_us):
        return "publishing"
    return "not published" if arrival.finished_us is None or arrival.finished_us > at_us else None


def is_under_way(arrival: Arrival, at_us: int) -> bool:
    """Tell whether rows of a commit were on their way online at an instant."""
    started_us, finished_us, committed_us = arrival.started_us, arrival.finished_us, arrival.committed_us
    if arrival.origin == PUSH and committed_us is not None and committed_us <= at_us < committed_us + PUSH_US:
        return True
    return started_us is not None and started_us <= at_us and (finished_us is None or finished_us > at_us)


def leaving(withdrawal: Withdrawn, at_us: int) -> str | None:
    """Return why a row was served at an instant that a rebuild withdrew; None where it was offline by then."""
    if withdrawal.at_us > at_us:
        return "withdrawn"
    started_us = withdrawal.started_us
    is_begun = started_us is not None and started_us <= at_us
    return None if withdrawal.offline_us <= at_us else "publishing" if is_begun else "not published"


def is_redefined(asked: Question, arrival: Arrival) -> bool:
    """Tell whether rows are others because another definition made them again."""
    return asked.change is not None and asked.change.of == "definition" and asked.remade(arrival)


def told(causes: Mapping[str, int]) -> dict[str, Any]:
    """Return counts in the order of `CAUSES`."""
    return {cause: causes[cause] for cause in CAUSES if causes.get(cause)}
