"""What the online store does when its memory runs out: it throws records away, or refuses to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

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

NEARLY_FULL_PERCENT = 90


class Room(NamedTuple):
    """A store that has no room left, or hardly any."""

    state: Literal["warning", "failed"]
    message: str
    hint: str = "Raise maxmemory of Redis, or free memory: runs and pushes fail while it is full, and reads go on."


def lack_of_room(facts: Mapping[str, str]) -> Room | None:
    """Return what to know about a store that refuses to write when its memory runs out, None where there is room."""
    percent = int(facts.get("memory_percent", 0))
    if percent < NEARLY_FULL_PERCENT or eviction_of(facts) is not None:
        return None
    used = f"The online store uses {percent} % of its maxmemory"
    if percent < 100:
        return Room("warning", f"{used}: when that is used up it refuses to write")
    return Room("failed", f"{used}: it refuses to write")


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
