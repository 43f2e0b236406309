"""Online records that the newest revision no longer uses but servers may still read: they refresh a little later."""

from __future__ import annotations

from datetime import timedelta

from featurestore_registry.records import Record, RevisionInfo

from featurestore.definitions import FeatureView
from featurestore.types.times import MICROSECOND, to_instant
from featurestore.workspace import Readers

LEAST_LAG = timedelta(seconds=30)
LAG_IN_REFRESHES = 3
"""How many of this project's `server.refresh`; servers elsewhere may have another setting, which is unknown here."""


def read_until(workspace: Readers) -> dict[tuple[str, int], int]:
    """Return until when servers may read generations that a recent revision superseded, by view and generation.

    Includes generations that are no longer online, but no deleted view: its data went with it. The registry's time
    says how old a revision is; one dated after now, by a clock that is ahead, counts as recent.
    """
    lag_us = max(LEAST_LAG, LAG_IN_REFRESHES * workspace.settings.server.refresh) // MICROSECOND
    definitions, project = workspace.registry.definitions, workspace.project
    now_us, limit = workspace.clock(), 50

    def ends_us(info: RevisionInfo) -> int:
        return -(-(to_instant(info.applied_at) + lag_us) // 1_000_000) * 1_000_000  # messages show whole seconds

    while len(history := definitions.history(project, limit=limit)) == limit and ends_us(history[-1]) > now_us:
        limit *= 4
    if not any(ends_us(info) > now_us for info in history):
        return {}
    before = definitions.read(project, history[-1].number - 1).records
    served = {record.name: _online_generation(record) for record in before if record.kind == FeatureView.kind}
    found: dict[tuple[str, int], int] = {}
    for info in reversed(history):
        for change in info.changes:
            if change.kind != FeatureView.kind:
                continue
            old = served.pop(change.name, None)
            if change.record is None:
                found = {part: ends for part, ends in found.items() if part[0] != change.name}
                continue
            served[change.name] = _online_generation(change.record)
            if old is not None and old != served[change.name] and ends_us(info) > now_us:
                found[change.name, old] = max(ends_us(info), found.get((change.name, old), 0))
    return found


def _online_generation(view: Record) -> int | None:
    return int(view.document["generation"]) if view.document["online"] else None
