"""Who reads what: models and programs that a change of definitions would touch.

The newest ledger entry of kind ``consumer``, key the consumer's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from featurestore_registry.documents import CONSUMER as KIND
from featurestore_registry.documents import DELETED, ConsumerDocument
from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import known_fields

from featurestore.errors import NotFoundError, did_you_mean

_GONE = DELETED[1]


@dataclass(frozen=True, slots=True)
class Consumer(ConsumerDocument):
    """A model or program that reads features."""

    def __str__(self) -> str:
        return f"{self.name} ({self.owner})" if self.owner else self.name


def list_consumers(ledger: LedgerReader, project: str) -> list[Consumer]:
    """Return a project's consumers by name."""
    entries = (entry for entry in ledger.scan(project, KIND) if entry.document != _GONE)
    made = (Consumer(**known_fields(Consumer, entry.document)) for entry in entries)
    found = (Consumer(each.name, tuple(each.services), each.owner, each.description) for each in made)
    return sorted(found, key=lambda consumer: consumer.name)


def add_consumer(ledger: Ledger, project: str, consumer: Consumer) -> None:
    """Note a consumer, in the place of one of its name."""
    ledger.append(project, KIND, consumer.name, asdict(consumer))


def remove_consumer(ledger: Ledger, project: str, name: str) -> None:
    """Forget a consumer; raises NotFoundError where there is none."""
    known = [consumer.name for consumer in list_consumers(ledger, project)]
    if name not in known:
        raise NotFoundError(f"Project {project!r} has no consumer {name!r}.", hint=did_you_mean(name, known), name=name)
    ledger.append(project, KIND, name, _GONE)


def readers_of(consumers: Iterable[Consumer], keys: Iterable[str]) -> tuple[str, ...]:
    """Return those that read one of some definitions (``kind:name``), each with its owner."""
    services = {key.partition(":")[2] for key in keys if key.startswith("feature_service:")}
    return tuple(str(consumer) for consumer in consumers if services & {*consumer.services})
