"""What feature servers say about themselves: which revision each serves, and which on-demand code it has.

Entries of kind ``serving`` in the registry's journal; the key is the process.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

import msgspec
from featurestore_registry.documents import SERVING, ServerDocument
from featurestore_registry.interface import Journal, RegistryReader
from featurestore_registry.records import JournalEntry

from featurestore.ledger.journal import append_in_passing
from featurestore.registered.records import understood_or_left
from featurestore.registered.snapshot import Snapshot

KIND = SERVING
TOLD_EVERY_US = 300_000_000
"""How often a server repeats what it serves."""
FORGOTTEN_AFTER = timedelta(minutes=15)
"""A server that has said nothing for so long is gone."""
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Server(ServerDocument):
    """One process of a feature server, by its own words."""

    seen_at: datetime | None = None
    """When it said so, by the registry's clock."""

    def behind(self, snapshot: Snapshot) -> bool:
        """Tell whether it serves another revision than the newest."""
        return self.hash != snapshot.chain.head

    def other_code(self, snapshot: Snapshot) -> list[str]:
        """Return the applied on-demand views that it cannot compute, because it lacks their code or has another."""
        return sorted(name for name, view in snapshot.on_demand.items() if self.code.get(name) != view.code_hash)


def tell(journal: Journal, project: str, server: Server, *, is_stopping: bool = False) -> None:
    """Write down what a server serves, or that it stops; not into a file that earlier versions use too."""
    document = {name: value for name, value in asdict(server).items() if name != "seen_at"}
    more = {"stopped": True} if is_stopping else {}
    append_in_passing(journal, project, KIND, [(f"{server.instance}-{server.process}", {**document, **more})])


def servers_of(registry: RegistryReader, project: str, now: datetime | None = None) -> list[Server]:
    """Return what each live server process of a project said last, by instance.

    ``now`` is the registry's clock, which is asked where it is left out.
    """
    now = registry.state(project).now if now is None else now
    newest: dict[str, JournalEntry] = {}
    after = 0
    while page := registry.journal.scan(project, KIND, since=now - FORGOTTEN_AFTER, after=after, limit=_PAGE):
        newest |= {entry.key: entry for entry in page}
        after = page[-1].cursor
    found = []
    for entry in newest.values():
        if not entry.document.get("stopped"):
            with understood_or_left(entry):
                found.append(replace(msgspec.convert(entry.document, Server), seen_at=entry.written_at))
    return sorted(found, key=lambda server: (server.instance, server.process))
