"""Between keys and values: one view online, as a compiled request sees it. Hides what a record is, and does no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from featurestore.online.records.fresh import RowRecords
from featurestore.online.records.reading import FetchValue, Form, ViewRows
from featurestore.online.records.windows_read import WindowRecords
from featurestore.registered.snapshot import RegisteredView
from featurestore.windows.layout import layout_of


class ServedView(Protocol):
    """One view, some of its features, in one form. Serves any number of requests, from several threads."""

    def keys(self, entities: Sequence[str]) -> list[bytes]:
        """Return the key of each encoded entity (`EntityEncoder.texts`, which views of one entity share)."""

    def unknown(
        self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int
    ) -> Mapping[bytes, Callable[[bytes | None], None]]:
        """Return the keys to look up before `read`, of schemas for example, each with the function that takes it."""

    def read(self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int) -> ViewRows:
        """Return the answer for the records of ``keys``. Raises DamagedRecordError."""

    def fresh(self, records: Sequence[bytes | None], now_us: int) -> list[list[object]] | None:
        """Return each record's features by the short way, None if only `read` can answer."""

    def event_us(self, records: Iterable[bytes | None], now_us: int) -> Iterator[int | None]:
        """Yield each record's event time; for a missing one None, or until when it is known that there is nothing."""


def served_view(
    registered: RegisteredView, features: Sequence[str], *, form: Form, fetch: FetchValue | None
) -> ServedView:
    """Return the object that serves a view. With ``fetch`` it looks up schemas when it meets them."""
    if registered.view.aggregations:
        layout, places = layout_of(registered.view)
        asked = [places[name] for name in features]
        return WindowRecords(registered.layout, layout, asked, form=form, fetch=fetch)
    return RowRecords(registered.layout, features, form=form, fetch=fetch)
