"""A caller's request for features, resolved against a project's definitions: the same for training and serving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from featurestore.definitions import (
    Definition,
    FeatureSelection,
    FeatureService,
    FeatureView,
    Field,
    OnDemandFeatureView,
    RequestSource,
)
from featurestore.errors import InputError, NotFoundError, OutputNameClashError, did_you_mean
from featurestore.registered.applied import check_as_applied
from featurestore.registered.selections import selection_from
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.types import ValueType

Reference = str | FeatureView | FeatureSelection | OnDemandFeatureView | FeatureService
"""``"view:feature"``, ``"view:*"`` for all features of a view, the name of a service, or an object."""
FeaturesArgument = Reference | Sequence[Reference] | None

EVERY = "*"
"""In place of a feature: all features of the applied view, in its order."""


@dataclass(frozen=True, slots=True)
class ViewRead:
    """One view, read by one set of the caller's columns."""

    name: str
    """Unique in the request: the first name under which it was asked for, or a name derived from it."""
    registered: RegisteredView
    key_columns: tuple[tuple[str, str], ...]
    """Each join key and the caller's column for it, in declared order."""
    features: tuple[str, ...]
    """The features to read, each once, in the order first asked for; inputs of on-demand views included."""

    @property
    def view(self) -> FeatureView:
        """The view as applied."""
        return self.registered.view


@dataclass(frozen=True, slots=True)
class OnDemandInput:
    """One argument of an on-demand function: a feature of a read, or (``read`` is None) a request field."""

    field: Field
    read: int | None
    position: int
    """Position of the feature in its read; 0 for a request field."""

    @property
    def name(self) -> str:
        """The bare name under which the function finds it."""
        return self.field.name


@dataclass(frozen=True, slots=True)
class OnDemandRead:
    """One on-demand view and where its inputs come from."""

    view: OnDemandFeatureView
    inputs: tuple[OnDemandInput, ...]

    def taken(self, request_data: Mapping[str, Any], reads: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Return what the function takes, by name: request data, and columns of the request's reads."""
        return {
            found.name: request_data[found.name] if found.read is None else reads[found.read][found.position]
            for found in self.inputs
        }


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """One output column, in the order asked."""

    name: str
    """``feature``, or ``{alias}__{feature}`` with full names."""
    alias: str
    """The view's name or the one it was asked for under."""
    field: Field
    read: int | None
    """Position in `FeatureRequest.reads`; None for a feature of ``on_demand``."""
    on_demand: int | None
    """Position in `FeatureRequest.on_demand`; None for a stored feature."""

    @property
    def reference(self) -> str:
        """``alias:feature``, for messages."""
        return f"{self.alias}:{self.field.name}"


@dataclass(frozen=True)
class FeatureRequest:
    """Reads, computations and output columns of one request. It never changes, so it can be kept and used again."""

    project: str
    revision: int
    reads: tuple[ViewRead, ...]
    on_demand: tuple[OnDemandRead, ...]
    outputs: tuple[OutputColumn, ...]
    full_feature_names: bool
    references: tuple[dict[str, Any], ...]
    """The request as JSON, from which `from_references` makes it again."""
    services: tuple[str, ...] = field(default=(), compare=False)
    """The feature services that were asked for."""

    @cached_property
    def key_types(self) -> dict[str, tuple[ValueType, ...]]:
        """The caller's key columns in the order of first use, each with the types that views declare for it."""
        found: dict[str, tuple[ValueType, ...]] = {}
        for read in self.reads:
            for key, column in read.key_columns:
                value_type = read.view.join_keys[key]
                known = found.get(column, ())
                found[column] = known if value_type in known else (*known, value_type)
        return found

    @cached_property
    def request_fields(self) -> dict[str, Field]:
        """What the caller must bring besides keys, by name."""
        return {
            argument.name: argument.field
            for computed in self.on_demand
            for argument in computed.inputs
            if argument.read is None
        }

    def check_own_columns(self, columns: Iterable[str]) -> None:
        """Raise OutputNameClashError when an output column would have the name of one of the caller's."""
        own = {str(column).lower(): column for column in columns}
        for output in self.outputs:
            if output.name.lower() in own:
                raise OutputNameClashError(
                    f"The output column {output.name!r} of {output.reference} has the name of your own column "
                    f"{own[output.name.lower()]!r}.",
                    hint="Rename your column, or pass full_feature_names=True."
                    if not self.full_feature_names
                    else "Rename your column.",
                    column=output.name,
                )


def resolve(snapshot: Snapshot, features: FeaturesArgument, *, full_feature_names: bool = False) -> FeatureRequest:
    """Resolve references, in the order given, against the applied definitions.

    An object must be equal to what is applied under its name (see `check_as_applied`). Raises NotFoundError with the
    closest name, OutputNameClashError naming both features, and InputError for anything else.
    """
    builder = _Builder(snapshot, full_feature_names)
    if features is None:
        raise InputError(
            "You asked for no features.", hint='Pass "view:feature" or "view:*" texts, views, or a feature service.'
        )
    for reference in features if isinstance(features, list | tuple) else [features]:
        if isinstance(reference, Definition | FeatureSelection):
            check_as_applied(snapshot, reference)
        builder.add(reference)
    return builder.request()


def from_references(
    snapshot: Snapshot, references: Iterable[dict[str, Any]], *, full_feature_names: bool
) -> FeatureRequest:
    """Resolve what `FeatureRequest.references` holds; raises as `resolve`."""
    builder = _Builder(snapshot, full_feature_names)
    for reference in references:
        if "on_demand" in reference:
            builder.add_on_demand(reference["on_demand"], reference["features"])
        else:
            builder.add(selection_from(reference, lambda _, name: builder.registered(name).view))
    return builder.request()


class _Builder:
    def __init__(self, snapshot: Snapshot, full_feature_names: bool) -> None:
        self._snapshot = snapshot
        self._full_names = full_feature_names
        self._reads: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[str, dict[str, None]]] = {}
        self._on_demand: dict[str, OnDemandRead] = {}
        self._outputs: list[OutputColumn] = []
        self._references: list[dict[str, Any]] = []
        self._services: list[str] = []

    def add(self, reference: Any) -> None:
        """Add a reference in any form that callers may pass."""
        if isinstance(reference, str):
            self._add_text(reference)
        elif isinstance(reference, FeatureView):
            self._add_selection(FeatureSelection(reference))
        elif isinstance(reference, FeatureSelection):
            self._add_selection(reference)
        elif isinstance(reference, OnDemandFeatureView):
            self.add_on_demand(reference.name, [field.name for field in reference.features])
        elif isinstance(reference, FeatureService):
            self._services.append(reference.name)
            for feature in reference.features:
                self.add(feature)
        else:
            raise InputError(
                f"{reference!r} is not a feature reference.",
                hint='Pass "view:feature" texts, views, selections, on-demand views, or a feature service.',
            )

    def _add_text(self, text: str) -> None:
        name, colon, feature = text.partition(":")
        if not colon:
            services = self._snapshot.services
            if text not in services:
                if text in self._snapshot.views or text in self._snapshot.on_demand or not text:
                    hint = f"Write a feature as view:feature, all of a view as {text or 'view'}:{EVERY}."
                    raise NotFoundError(f"{text!r} names no feature.", hint=hint, name=text)
                hint = did_you_mean(text, services) or "No service is applied; write single features as view:feature."
                raise NotFoundError(f"There is no feature service {text!r}.", hint=hint, name=text)
            self.add(services[text])
        elif name in self._snapshot.on_demand:
            every = [field.name for field in self._snapshot.on_demand[name].features]
            self.add_on_demand(name, every if feature == EVERY else [feature])
        else:
            self._add_selection(FeatureSelection(self.registered(name).view), None if feature == EVERY else [feature])

    def registered(self, name: str) -> RegisteredView:
        """Return a view as applied; raises NotFoundError."""
        views = self._snapshot.views
        if name not in views:
            known = [*views, *self._snapshot.on_demand]
            hint = did_you_mean(name, known) or f"Project {self._snapshot.project!r} has none; run `fs apply` first."
            raise NotFoundError(f"There is no feature view {name!r}.", hint=hint, name=name)
        return views[name]

    def _add_selection(self, selection: FeatureSelection, names: Sequence[str] | None = None) -> None:
        view = self.registered(selection.view.name).view
        if names is None:
            named = view if selection.view.fields is None else selection.view
            names = selection.names or [field.name for field in named.features]
        fields = [view.feature(name) for name in names]
        position = self._read(selection, view, names)
        for found in fields:
            self._outputs.append(OutputColumn("", selection.name, found, position, None))
        self._references.append(
            {
                "view": view.name,
                "features": list(names),
                "name": selection.name,
                "join_keys": dict(selection.columns),
            }
        )

    def _read(self, selection: FeatureSelection, view: FeatureView, names: Iterable[str]) -> int:
        """Return the position of the read that serves a selection; adds the read or the features that it lacks."""
        read = view.name, tuple((key, selection.columns.get(key, key)) for key in view.join_keys)
        _, features = self._reads.setdefault(read, (selection.name, {}))
        features.update(dict.fromkeys(names))
        return list(self._reads).index(read)

    def add_on_demand(self, name: str, names: Sequence[str]) -> None:
        """Add features of an on-demand view, and everything that its function reads."""
        registered = self._snapshot.get(OnDemandFeatureView, name)
        known = {field.name: field for field in registered.features}
        for feature in names:
            if feature not in known:
                raise NotFoundError(
                    f"On-demand feature view {name!r} has no feature {feature!r}.",
                    hint=did_you_mean(feature, known),
                    view=name,
                    feature=feature,
                )
        if name not in self._on_demand:
            self._on_demand[name] = OnDemandRead(registered, tuple(self._inputs(registered)))
        position = list(self._on_demand).index(name)
        for feature in names:
            self._outputs.append(OutputColumn("", name, known[feature], None, position))
        self._references.append({"on_demand": name, "features": list(names)})

    def _inputs(self, registered: OnDemandFeatureView) -> Iterable[OnDemandInput]:
        for source in registered.inputs:
            if isinstance(source, RequestSource):
                yield from (OnDemandInput(field, None, 0) for field in source.fields)
                continue
            view = self.registered(source.view.name).view
            names = [field.name for field in source.features]
            read = self._read(source, view, names)
            places = list(list(self._reads.values())[read][1])
            yield from (OnDemandInput(view.feature(name), read, places.index(name)) for name in names)

    def request(self) -> FeatureRequest:
        """Return the request, its output names made and checked."""
        if not self._outputs:
            raise InputError("You asked for no features.", hint="Name at least one.")
        outputs = tuple(
            replace(found, name=f"{found.alias}__{found.field.name}" if self._full_names else found.field.name)
            for found in self._outputs
        )
        _check_names(outputs, self._full_names)
        _check_request_types(self._on_demand.values())
        return FeatureRequest(
            project=self._snapshot.project,
            revision=self._snapshot.revision,
            reads=self._named_reads(),
            on_demand=tuple(self._on_demand.values()),
            outputs=outputs,
            full_feature_names=self._full_names,
            references=tuple(self._references),
            services=tuple(self._services),
        )

    def _named_reads(self) -> tuple[ViewRead, ...]:
        names = [name for name, _ in self._reads.values()]
        columns = [
            f"{name}__{feature}".lower()
            for name, (_, features) in zip(names, self._reads.values(), strict=True)
            for feature in features
        ]
        if len(set(names)) < len(names) or len(set(columns)) < len(columns):
            names = [f"read{position}_{name}" for position, name in enumerate(names)]
        return tuple(
            ViewRead(name, self._snapshot.views[view], key_columns, tuple(features))
            for name, ((view, key_columns), (_, features)) in zip(names, self._reads.items(), strict=True)
        )


def _check_names(outputs: Sequence[OutputColumn], full_names: bool) -> None:
    seen: dict[str, OutputColumn] = {}
    reads: dict[str, OutputColumn] = {}
    for output in outputs:
        twin = seen.setdefault(output.name.lower(), output)
        if twin is not output:
            same = (twin.alias, twin.field.name) == (output.alias, output.field.name)
            hint = (
                "Pass full_feature_names=True (--full-feature-names), or read one of them under another name: "
                ".with_name(...)."
            )
            raise OutputNameClashError(
                f"Two output columns would be named {output.name!r}: {twin.reference} and {output.reference}.",
                hint="Ask for it once." if same else "Rename one of them: .with_name(...)." if full_names else hint,
                column=output.name,
            )
        first = reads.setdefault(output.alias, output)
        if (first.read, first.on_demand) != (output.read, output.on_demand):
            raise OutputNameClashError(
                f"{first.reference} and {output.reference} are read under one name by different key columns.",
                hint="Read one of them under another name: .with_name(...).",
                column=output.alias,
            )


def _check_request_types(computed: Iterable[OnDemandRead]) -> None:
    seen: dict[str, tuple[str, Field]] = {}
    for read in computed:
        for argument in read.inputs:
            if argument.read is not None:
                continue
            view, field = seen.setdefault(argument.name, (read.view.name, argument.field))
            if field.type != argument.field.type:
                raise InputError(
                    f"The request field {argument.name!r} is {field.type} for {view!r} but {argument.field.type} "
                    f"for {read.view.name!r}.",
                    hint="Read them in two requests, or give the fields different names.",
                )
