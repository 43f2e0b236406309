"""What is online of a windowed view: so plan and status know which windows are answered and which are not."""

from __future__ import annotations

from contextlib import suppress

from featurestore.definitions import FeatureView
from featurestore.errors import OnlineStoreUnavailableError
from featurestore.following.mark import mark_from, read_marks
from featurestore.online.records.keys import KeyEncoder
from featurestore.registered.snapshot import RegisteredView
from featurestore.windows.layout import Layout, found_in, layout_from, layout_of
from featurestore.workspace import Readers

MOST_MADE_ANEW = 100_000
"""At most so many rows of a log are made into records by a push that finds no mark it can go on from; more by a run."""


def held_layouts(workspace: Readers, registered: RegisteredView) -> tuple[Layout, ...]:
    """Return the layouts of a windowed view's records, none where nothing is online: definitions may be newer.

    Where the store does not say, they are those of the applied definition.
    """
    view = registered.view
    if not view.online or workspace.offline.current(registered.table) is None:
        return ()
    with suppress(OnlineStoreUnavailableError, ValueError):
        marks = filter(None, map(mark_from, read_marks(workspace, registered).values()))
        ids = sorted({mark.layout for mark in marks})
        encoder = KeyEncoder(registered.layout)
        documents = workspace.online.get([encoder.schema_key(bytes.fromhex(each)) for each in ids])
        found = tuple(layout_from(document) for document in documents if document is not None)
        if ids and len(found) == len(ids):
            return found
    return (layout_of(view)[0],)


def not_held(held: tuple[Layout, ...], view: FeatureView) -> tuple[str, ...]:
    """Return the windows of a view that records of some layouts do not answer."""
    if not held:
        return ()
    own, places = layout_of(view)
    return tuple(name for name, asked in places.items() if any(found_in(kept, own, asked) is None for kept in held))


def wait_for_records(held: tuple[Layout, ...], view: FeatureView) -> bool:
    """Tell whether pushed events wait until a view's records are made again: they go into those of its own layout."""
    return view.takes_events and any(kept.id != layout_of(view)[0].id for kept in held)
