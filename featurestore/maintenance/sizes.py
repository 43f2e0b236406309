"""How large the online records of windows are, by a look at some of them."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.windowed import entries_of, head_of, is_intact, sections_of
from featurestore.registered.snapshot import RegisteredView
from featurestore.windows.layout import layout_of
from featurestore.workspace import Readers

MOST_RECORDS = 1_000
"""At most so many records are looked at: keys begin with a hash, so the first ones are as good as any."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The median and the greatest of some records."""

    records: int
    """How many were looked at."""
    tiles: tuple[int, int]
    """The tiles of all resolutions together."""
    bytes: tuple[int, int]
    newest_events: tuple[int, int]
    """Events that wait beside the tiles."""


def sizes_of(workspace: Readers, registered: RegisteredView) -> Sizes | None:
    """Return how large the records of a view with windows are; None where there are none of its layout.

    Raises OnlineStoreUnavailableError.
    """
    layout, _ = layout_of(registered.view)
    tiles, lengths, waiting = list[int](), list[int](), list[int]()
    for batch in workspace.online.scan(KeyEncoder(registered.layout).prefix):
        for key, record in batch[: MOST_RECORDS - len(lengths)]:
            if is_intact(key, record) and head_of(record).schema_id == layout.id:
                tiles.append(sum(sections_of(layout, record).counts))
                lengths.append(len(record))
                waiting.append(sum(1 for _ in entries_of(record)))
        if len(lengths) >= MOST_RECORDS:
            break
    if not lengths:
        return None
    return Sizes(len(lengths), _typical(tiles), _typical(lengths), _typical(waiting))


def _typical(found: list[int]) -> tuple[int, int]:
    ordered = sorted(found)
    return ordered[len(ordered) // 2], ordered[-1]
