"""What a view's committed spans lack: features added after a span was read, and spans read by older definitions.

The newest ledger entry of kind ``unread``, key ``{view}.{generation}``. Runs write it, and only when it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b

from featurestore_registry.documents import WATERMARK, Interval
from featurestore_registry.interface import Ledger, RegistryReader

from featurestore.definitions import FeatureView
from featurestore.ledger.watermarks import Watermark, merge, subtract, watermark_from
from featurestore.registered.records import understood
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.times import to_short_rfc3339

KIND = "unread"
_ALL_REVISIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class Unread:
    """The parts of a view's committed spans that the applied definition has not read."""

    view: str
    stored: tuple[str, ...]
    """The stored fields that the definition has."""
    reads: str
    """A hash of what the definition reads: SQL, paths, time columns."""
    missing: Mapping[str, tuple[Interval, ...]]
    """For each feature the spans that were read before the view had it: it is null there. No entry is empty."""
    outdated: tuple[Interval, ...]
    """Spans that were read with other SQL or from another source: they hold those rows."""
    is_incremental: bool = True
    """Whether the view has incremental runs: otherwise one would read from the source's first event on."""

    @property
    def again(self) -> tuple[Interval, ...]:
        """The spans that an incremental run reads once more."""
        return merge(span for spans in self.missing.values() for span in spans)

    def after(self, read: Iterable[Interval], *, rebuilt: bool) -> Unread:
        """Return what is left after spans were read; only a rebuild removes rows that came from older SQL."""
        taken = tuple(read)
        left = {name: subtract(spans, taken) for name, spans in self.missing.items()}
        return replace(
            self,
            missing={name: spans for name, spans in left.items() if spans},
            outdated=subtract(self.outdated, taken) if rebuilt else self.outdated,
        )

    def texts(self, stored: Iterable[str] | None = None) -> tuple[str, ...]:
        """Return a sentence with a command for each gap; ``stored`` limits them to fields that somebody asks for."""
        asked = set(self.stored if stored is None else stored)
        found = []
        names = [name for name in self.stored if name in self.missing and name in asked]
        if names:
            spans = merge(span for name in names for span in self.missing[name])
            what = f"Feature {names[0]!r}" if len(names) == 1 else f"Features {', '.join(map(repr, names))}"
            found.append(
                f"{what} of view {self.view!r}: null for {in_words(spans)}, which was read before the view had "
                f"{'it' if len(names) == 1 else 'them'}. Run {self._commands(spans)} to read it again."
            )
        if self.outdated:
            (rebuild,) = commands(self.view, [(self.outdated[0][0], self.outdated[-1][1])], " --rebuild")
            found.append(
                f"View {self.view!r} holds rows of another source or SQL for {in_words(self.outdated)}. "
                f"Run `{rebuild}`."
            )
        return tuple(found)

    def _commands(self, spans: Iterable[Interval]) -> str:
        if self.is_incremental:
            return f"`fs materialize --view {self.view}`"
        return " and ".join(f"`{command}`" for command in commands(self.view, spans))


def commands(view: str, spans: Iterable[Interval], option: str = "") -> tuple[str, ...]:
    """Return the commands that read spans of a view again."""
    dates = [(to_short_rfc3339(start), to_short_rfc3339(end)) for start, end in spans]
    return tuple(f"fs materialize {start} {end}{option} --view {view}" for start, end in dates)


def in_words(spans: Iterable[Interval]) -> str:
    """Return spans for people: the first ones, and how many more there are."""
    texts = [f"{to_short_rfc3339(start)} to {to_short_rfc3339(end)}" for start, end in spans]
    more = f" and {len(texts) - 2} more spans" if len(texts) > 2 else ""
    return " and ".join(texts[:2]) + more


def read_unread(registry: RegistryReader, registered: RegisteredView, watermark: Watermark) -> Unread:
    """Return what a view's committed spans lack; ``watermark`` says which they are.

    The definition may be newer than the entry: a feature that the entry does not know was never read.
    """
    view, ledger = registered.view, registry.ledger
    entry = ledger.latest(registered.project, KIND, registered.ledger_key)
    names = tuple(field.name for field in view.stored)
    reads, is_incremental = reads_of(view), watermark.begun_us is not None or not watermark.intervals
    if entry is None:
        missing = _missing_by_history(registry, registered) if watermark.intervals else {}
        return Unread(view.name, names, reads, missing, (), is_incremental)
    document = entry.document
    with understood("what a view has not read"):
        spans = {
            name: _spans(document["missing"].get(name, ())) if name in document["features"] else watermark.intervals
            for name in names
        }
        outdated = _spans(document["outdated"]) if document["reads"] == reads else watermark.intervals
    missing = {name: found for name, found in spans.items() if found}
    return Unread(view.name, names, reads, missing, outdated, is_incremental)


def _missing_by_history(registry: RegistryReader, registered: RegisteredView) -> dict[str, tuple[Interval, ...]]:
    """Return the spans that features lack, by the times of applies and watermarks: earlier releases wrote no more.

    A feature lacks the spans that were committed when it was added; whether they were read again is unknown.
    """
    project = registered.project
    added: dict[str, datetime] = {}
    for info in reversed(registry.definitions.history(project, limit=_ALL_REVISIONS)):
        for change in info.changes:
            record = change.record
            if record is None or record.key != registered.view.key:
                continue
            if record.document["generation"] == registered.generation:
                added.update({field.name: info.applied_at for field in record.fields if field.name not in added})
    first = min(added.values(), default=None)
    marks = registry.ledger.scan(project, WATERMARK, key=registered.ledger_key)
    missing = {}
    for feature in registered.view.stored:
        at = added.get(feature.name)
        if at is None or at == first:
            continue
        before = [entry for entry in marks if entry.written_at <= at]
        # The ledger trims its oldest entries. If the very first one is left, it is older than the feature, or none is.
        oldest = [] if not marks or marks[-1].version == 1 else marks[-1:]
        spans = watermark_from(next(iter(before or oldest), None)).intervals
        if spans:
            missing[feature.name] = spans
    return missing


def write_unread(ledger: Ledger, registered: RegisteredView, unread: Unread) -> None:
    """Write what is left, durably, unless it is written already."""
    document = {
        "features": list(unread.stored),
        "reads": unread.reads,
        "missing": {name: [list(span) for span in spans] for name, spans in unread.missing.items()},
        "outdated": [list(span) for span in unread.outdated],
    }
    entry = ledger.latest(registered.project, KIND, registered.ledger_key)
    if entry is None or entry.document != document:
        ledger.append(registered.project, KIND, registered.ledger_key, document)


def reads_of(view: FeatureView) -> str:
    """Return a hash of what decides which rows a view reads, and their values."""
    sources = [(s.path, s.timestamp_field, s.created_timestamp_field) for s in view.batch_sources]
    return blake2b(repr((view.sql, sources)).encode(), digest_size=16).hexdigest()


def _spans(found: Iterable[Iterable[int]]) -> tuple[Interval, ...]:
    return tuple((int(start), int(end)) for start, end in found)
