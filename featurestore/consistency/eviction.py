"""Whether the online store may throw records away that windows cannot do without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from featurestore.online.interface import eviction_of
from featurestore.registered.snapshot import RegisteredView

NO_EVICTION = (
    "Run `redis-cli CONFIG SET maxmemory-policy noeviction`, then `fs materialize --republish`, which brings back what "
    "was evicted."
)

_SINCE = (
    "Run `fs materialize --republish`, which brings back what was evicted, then `redis-cli CONFIG RESETSTAT`, which "
    "begins the count anew."
)


def evicted_keys(facts: Mapping[str, str]) -> int:
    """Return how many keys a store has evicted since it started, as far as it says."""
    told = facts.get("evicted_keys", "")
    return int(told) if told.isdigit() else 0


def evicted(facts: Mapping[str, str]) -> tuple[str, str] | None:
    """Return what to know about keys that a store has evicted, and what to do; None where it says of none."""
    if not (count := evicted_keys(facts)):
        return None
    keys = "1 key" if count == 1 else f"{count:,} keys"
    told = f"The online store has evicted {keys} since it started: records among them are gone until they are published"
    return told, _SINCE if eviction_of(facts) is None else NO_EVICTION


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
