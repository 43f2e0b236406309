"""Compiled requests of one revision, kept by the shape of the request."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from featurestore.definitions import FeatureService
from featurestore.errors import FeatureStoreError, InputError
from featurestore.registered.snapshot import Snapshot
from featurestore.request.deprecated import deprecations
from featurestore.request.features import FeatureRequest, Reference, resolve
from featurestore.request.on_demand import OnDemandFunction
from featurestore.served.shape import ServedShape
from featurestore.server.http.bodies import Name, decoded
from featurestore.server.http.errors import check_count
from featurestore.serving.compiled import CompiledRequest

logger = logging.getLogger("featurestore.server")

Served = Callable[[Snapshot, FeatureRequest, str], ServedShape | None]
"""Says how the answers of a service are kept."""

MOST_SHAPES = 256
MOST_FEATURES = 500
MOST_PATTERNS = 4_096
MOST_KEPT_BYTES = 64 * 1024
"""Longest text of a request's features that is kept; 500 features rarely take half of it. Otherwise texts that differ
in blanks could fill the memory."""

_FEATURES = msgspec.json.Decoder(list[Name] | None)


class Asked(NamedTuple):
    """The shape of a request: features, or the name of a service."""

    features: bytes
    """JSON list of references as sent: equal texts are recognised without parsing. ``null`` for a service."""
    service: str | None
    full_feature_names: bool


class Pattern(NamedTuple):
    """Which values of a row are null."""

    statuses: bytes
    """JSON list of the statuses: NULL_VALUE or PRESENT."""
    nulls: tuple[int, ...]
    """How many nulls there are in each read."""


class Template:
    """A compiled request, and the parts of its answers that are always the same."""

    def __init__(self, compiled: CompiledRequest) -> None:
        widths = [len(read.features) for read in compiled.request.reads]
        ends = list(accumulate(widths))
        self.compiled = compiled
        self.names = msgspec.json.encode(compiled.names)
        """JSON list of the output names."""
        self.present = Pattern(msgspec.json.encode(["PRESENT"] * len(compiled.names)), (0,) * len(widths))
        """The statuses of a row without nulls, as JSON."""
        self.views = tuple(read.view.name for read in compiled.request.reads)
        """The view's name of each read."""
        self.slices = tuple(map(slice, [0, *ends], ends))
        """Where each read's features are in a row of a straight request."""
        self.expects_nulls = False
        """Whether the last answer had nulls: without nulls all rows are encoded at once."""
        self.deprecated: list[str] = []
        """What the log should say about it; emptied when it was said."""
        self.served: ServedShape | None = None
        """How a share of its answers is kept; None where they are not."""
        self._patterns: dict[tuple[int, ...], Pattern] = {}
        """Patterns by the places of their nulls: a few patterns come again and again."""

    def pattern(self, row: Sequence[Any], text: bytes) -> Pattern:
        """Return the pattern of a row's nulls; the request must be straight. ``text`` is the row's JSON.

        NaN and infinities are nulls in JSON; the search for them runs only if the JSON has more nulls than the row.
        """
        shown = text.count(b"null")
        if not shown:
            return self.present
        found_places, place = [], -1
        try:
            for _ in range(shown):
                place = row.index(None, place + 1)
                found_places.append(place)
        except ValueError:  # not all of them are None
            found_places = [place for place, value in enumerate(row) if _is_null(value)]
            if not found_places:
                return self.present
        places = tuple(found_places)
        found = self._patterns.get(places)
        if found is None:
            names = ["NULL_VALUE" if place in places else "PRESENT" for place in range(len(row))]
            if len(self._patterns) >= MOST_PATTERNS:
                self._patterns.clear()
            by_view = tuple(sum(part.start <= place < part.stop for place in places) for part in self.slices)
            found = self._patterns[places] = Pattern(msgspec.json.encode(names), by_view)
        return found


def _is_null(value: Any) -> bool:
    return value is None or (type(value) is float and not math.isfinite(value))


class Templates:
    """Templates by shape; the least recently used one goes first. For one event loop's thread."""

    def __init__(self, snapshot: Snapshot, before: Templates | None = None, served: Served | None = None) -> None:
        self.snapshot = snapshot
        self._served = served
        self._told: set[str] = set() if before is None else before._told
        """What the log has said about deprecated definitions, since the start: once each."""
        self._kept: dict[Asked, Template] = {}

    def template(self, asked: Asked, *, is_asked: bool = True) -> Template:
        """Return the template of a shape; logs, once, what is deprecated about a shape that a request asked for.

        Raises RequestError (413) for too many features, NotFoundError, CodeMismatchError, OutputNameClashError
        and InputError as `resolve` and `CompiledRequest` do.
        """
        is_kept = len(asked.features) <= MOST_KEPT_BYTES
        found = self._kept.pop(asked, None) if is_kept else None
        if found is None:
            found = self._compile(asked)
            while is_kept and len(self._kept) >= MOST_SHAPES:
                del self._kept[next(iter(self._kept))]
        if is_kept:
            self._kept[asked] = found
        if found.deprecated and is_asked:
            self._tell(found)
        return found

    def _tell(self, template: Template) -> None:
        for told in template.deprecated:
            if told not in self._told:
                self._told.add(told)
                logger.warning("served: %s", told)
        template.deprecated = []

    def prepare(self, wanted: Iterable[Asked]) -> None:
        """Compile the shapes in use, so that the first requests after a swap or a start need not wait."""
        for asked in wanted:
            with suppress(FeatureStoreError):  # cannot be served, or is gone in this revision: requests will report it
                self.template(asked, is_asked=False)

    def services(self) -> list[Asked]:
        """Return the shapes of requests for the services."""
        return [Asked(b"null", name, False) for name in list(self.snapshot.services)[:MOST_SHAPES]]

    def in_use(self) -> list[Asked]:
        """Return the shapes that were asked for lately."""
        return list(self._kept)

    def rehearse(self) -> None:
        """Run each on-demand function once; call it in a thread, because functions may be slow."""
        for view in self.snapshot.on_demand.values():
            with suppress(FeatureStoreError):
                OnDemandFunction(self.snapshot, view).rehearse()

    def _compile(self, asked: Asked) -> Template:
        features: Reference | list[Reference]
        if asked.service is not None:
            features = self.snapshot.get(FeatureService, asked.service)
        else:
            references = decoded(_FEATURES, asked.features, "features") or []
            _check_count(len(references))
            features = [_checked(feature) for feature in references]
        request = resolve(self.snapshot, features, full_feature_names=asked.full_feature_names)
        _check_count(len(request.outputs))
        template = Template(CompiledRequest(self.snapshot, request, form="json"))
        template.deprecated = deprecations(self.snapshot, request)
        if asked.service is not None and self._served is not None:
            template.served = self._served(self.snapshot, request, asked.service)
        return template


def _checked(feature: str) -> str:
    if ":" not in feature:
        raise InputError(
            f"{feature!r} is not a feature reference.",
            hint="Write a feature as view:feature, all of a view as view:*.",
        )
    return feature


def _check_count(features: int) -> None:
    check_count(features, MOST_FEATURES, "too_many_features", "features", "Ask in several requests.")
