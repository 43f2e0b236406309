"""Whether the online store may throw records away that windows cannot do without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from featurestore.online.interface import eviction_of
from featurestore.registered.snapshot import RegisteredView

NO_EVICTION = (
    "Run `redis-cli CONFIG SET maxmemory-policy noeviction`, then `fs materialize --republish`, which brings back what "
    "was evicted."
)


def windows_at_risk(views: Iterable[RegisteredView], facts: Mapping[str, str]) -> str | None:
    """Return what is wrong with a store that evicts, None where it does not or holds no windows.

    A record of a plain view that was evicted is not found. One of windows is taken for an entity without events, and
    begins anew with the next one: it counts wrong until the next publish. Records expire, so ``volatile-*`` takes them
    too.
    """
    names = sorted(found.view.name for found in views if found.view.aggregations and found.view.online)
    told = eviction_of(facts)
    if told is None or not names:
        return None
    policy = facts["maxmemory_policy"]
    return f"maxmemory-policy is {policy}: windows of {', '.join(names)} count wrong where a record is evicted"
