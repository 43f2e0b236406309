"""What a plan says beside a definition that it creates or changes: what is allowed, and likely to surprise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from featurestore.definitions import Definition, FeatureView, PushSource
from featurestore.metadata.snapshot import Snapshot
from featurestore.metadata.workspace import Workspace


def step_notices(
    workspace: Workspace, snapshot: Snapshot, before: Definition | None, wanted: Definition
) -> tuple[str, ...]:
    """Return the notices of one step, each a sentence or two that name the definition.

    ``before`` is what is applied under the name in ``snapshot``, None for what is new. A view's schema is known.
    """
    if not isinstance(wanted, FeatureView):
        return ()
    old = before if isinstance(before, FeatureView) else None
    return tuple(text for notice in _VIEW_NOTICES for text in notice(workspace, snapshot, old, wanted))


def _takes_no_pushes(
    workspace: Workspace, snapshot: Snapshot, before: FeatureView | None, view: FeatureView
) -> Iterable[str]:
    if view.sql is not None:
        for source in view.sources:
            if isinstance(source, PushSource):
                yield (
                    f"{view.name} takes no rows that are pushed to {source.name}: they would have to pass through its "
                    "SQL. It changes when `fs materialize` reads the batch source."
                )


_VIEW_NOTICES: list[Callable[[Workspace, Snapshot, FeatureView | None, FeatureView], Iterable[str]]] = [
    _takes_no_pushes,
]
"""Each looks at one view; a new notice is a function here."""
