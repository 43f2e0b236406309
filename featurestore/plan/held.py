"""What is online of a windowed view: by that a plan knows which windows are answered at once and which are not."""

from __future__ import annotations

from contextlib import suppress

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.following.mark import mark_from, read_marks
from featurestore.online.records.keys import KeyEncoder
from featurestore.registered.snapshot import RegisteredView
from featurestore.windows.layout import Layout, layout_from, layout_of
from featurestore.workspace import Readers


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
