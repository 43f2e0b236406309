"""Between keys and values: what a plan knows of one view online. It hides what a record is, and does no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from featurestore.online.records.fresh import RowRecords
from featurestore.online.records.reading import FetchValue, Form, ViewRows
from featurestore.registered.snapshot import RegisteredView


class ServedView(Protocol):
    """One view, some of its features, in one form. Serves any number of requests, from several threads."""

    def keys(self, entities: Sequence[str]) -> list[bytes]:
        """Return the key of each encoded entity (`EntityEncoder.texts`, which views of one entity share)."""

    def unknown(self, records: Sequence[bytes | None]) -> Mapping[bytes, Callable[[bytes], None]]:
        """Return the keys of schemas to look up before `read`, each with what takes the value."""

    def read(self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int) -> ViewRows:
        """Return the answer for the records of ``keys``. Raises DamagedRecordError."""

    def fresh(self, records: Sequence[bytes | None], now_us: int) -> list[list[object]] | None:
        """Return each record's features where that takes no closer look, None where `read` has to take it."""

    def event_us(self, records: Iterable[bytes | None]) -> Iterator[int | None]:
        """Yield the event time that each record answers with, None where it has none."""


def served_view(
    registered: RegisteredView, features: Sequence[str], *, form: Form, fetch: FetchValue | None
) -> ServedView:
    """Return how a view is served. Where `fetch` is given, schemas are looked up by it as they are met."""
    return RowRecords(registered.layout, features, form=form, fetch=fetch)
