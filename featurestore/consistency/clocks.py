"""How far other machines' clocks are from this one's: ttls, watermarks and what counts as the future depend on it."""

from __future__ import annotations

from collections.abc import Mapping

from featurestore_registry.interface import RegistryReader

from featurestore.ledger import leases
from featurestore.types.times import CLOCK_TOLERANCE_US, MIN_INSTANT, duration_text, to_instant, to_rfc3339

ONLINE_STORE = "the online store"
REGISTRY = "the newest writer to the registry"
SYNCHRONISE = (
    "Synchronise the clocks of all machines (chrony, ntpd): ttls and what counts as the future depend on them."
)
AHEAD = (
    "Nothing is lost: events that it wrote count once their time has come, and until then reading takes an entity "
    "without events for covered until now, however long ago anything was pushed. " + SYNCHRONISE
)


def registry_ahead_us(registry: RegistryReader, project: str, now_us: int) -> int:
    """Return how far the registry's newest entry is in this machine's future; 0 where it is not."""
    return max(0, newest_written_us(registry, project) - now_us)


def newest_written_us(registry: RegistryReader, project: str) -> int:
    """Return when the registry was last written to, by its writer's clock; the least instant where it never was.

    Every run writes a lease when it begins and when it ends, every apply a revision.
    """
    written = [entry.written_at for entry in registry.ledger.scan(project, leases.KIND, limit=1)]
    written += [revision.applied_at for revision in registry.definitions.history(project, limit=1)]
    return max(map(to_instant, written), default=MIN_INSTANT)


def online_ahead_us(facts: Mapping[str, str]) -> int | None:
    """Return how far a server's clock is ahead, negative where it is behind; None for a store without a clock."""
    found = facts.get("clock_ahead_ms")
    return None if found is None else int(found) * 1000


def clock_problem(whose: str, ahead_us: int | None) -> str | None:
    """Return a warning about a clock that is more than five seconds off, None for any other."""
    if ahead_us is None or abs(ahead_us) <= CLOCK_TOLERANCE_US:
        return None
    return f"The clock of {whose} is {_length(ahead_us)} {'ahead of' if ahead_us > 0 else 'behind'} this machine's."


def covered_ahead(view: str, covered_us: int | None, now_us: int) -> str | None:
    """Return a warning about windows that are covered until more than five seconds from now, None for others."""
    if covered_us is None or covered_us - now_us <= CLOCK_TOLERANCE_US:
        return None
    return (
        f"The windows of {view} are covered until {to_rfc3339(covered_us)}, {_length(covered_us - now_us)} from now: a "
        "machine that pushed or published had a clock ahead of this one's."
    )


def _length(ahead_us: int) -> str:
    return duration_text(abs(ahead_us) // 1_000_000 * 1_000_000)
