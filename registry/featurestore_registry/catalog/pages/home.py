"""A project's first page: what is stale, what failed, what is new, what changed."""

from __future__ import annotations

from featurestore_registry.catalog.activity import STATES
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages.watching import wanting_monitors
from featurestore_registry.catalog.project import ORDER
from featurestore_registry.documents import MONITOR

_MOST = 8


def home(ask: Ask) -> Page:
    """Return the page."""
    activity, now_us = ask.activity, ask.now_us
    by_state = {state: [view for view in activity.values() if state in view.states(now_us)] for state in STATES}
    wanting = (view for state in ("failed", "stale", "empty") for view in by_state[state])
    worries = list({view.view: view for view in wanting}.values())
    order = {kind: position for position, kind in enumerate(ORDER)}
    touches = sorted(
        ask.history.touches(), key=lambda touch: (-touch.apply.number, order.get(touch.kind, len(order)), touch.name)
    )
    runs = sorted((view.last for view in activity.values() if view.last), key=lambda run: -run.started_us)
    new = [touch for touch in touches if touch.what == "created" and touch.key in ask.project.records]
    changed = [touch for touch in touches if touch.what != "created"]
    watched = wanting_monitors(ask)
    return Page(
        "home.html",
        {
            "by_state": by_state,
            "worries": worries[: 3 * _MOST],
            "worried": len(worries),
            "watched": watched[: 2 * _MOST],
            "watched_count": len(watched),
            "monitors": len(ask.project.of_kind(MONITOR)),
            "alarms": sum(finding.state == "alarm" for _, finding in watched),
            "new": new[:_MOST],
            "changed": changed[:_MOST],
            "more": (len(new) - _MOST, len(changed) - _MOST),
            "runs": runs[:_MOST],
            "latest": ask.history.applies[0] if ask.history.applies else None,
        },
    )
