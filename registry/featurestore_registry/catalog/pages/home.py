"""A project's first page: what is stale, what failed, what is new, what changed."""

from __future__ import annotations

from itertools import islice

from featurestore_registry.catalog.activity import STATES
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page

_MOST = 8


def home(ask: Ask) -> Page:
    """Return the page."""
    activity, now_us = ask.activity, ask.now_us
    by_state = {state: [view for view in activity.values() if view.state(now_us) == state] for state in STATES}
    touches = list(ask.history.touches())
    runs = sorted((view.last for view in activity.values() if view.last), key=lambda run: -run.started_us)
    return Page(
        "home.html",
        {
            "by_state": by_state,
            "worries": [view for state in ("failed", "stale", "empty") for view in by_state[state]][: 3 * _MOST],
            "worried": sum(len(by_state[state]) for state in ("failed", "stale", "empty")),
            "new": list(islice((touch for touch in touches if touch.what == "created"), _MOST)),
            "changed": list(islice((touch for touch in touches if touch.what != "created"), _MOST)),
            "runs": runs[:_MOST],
            "latest": ask.history.applies[0] if ask.history.applies else None,
        },
    )
