"""On-demand feature views: features computed from other features and from the request, when they are read."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from featurestore.definitions.base import Definition, Field, Schema, as_dict, as_tuple, check_unique_columns
from featurestore.definitions.source import RequestSource
from featurestore.definitions.view import FeatureSelection, FeatureView

Mode = Literal["python", "pandas"]


class OnDemandFeatureView(Definition):
    """Features that a function computes when they are read, the same online and offline.

    In mode ``python`` the function receives and returns a dict of equally long lists (None for null); in mode
    ``pandas`` a DataFrame with nullable dtypes. It must work row by row: the number of rows differs between a
    request and a training set. Inputs carry the bare names of features and request fields.
    """

    kind: ClassVar[str] = "on_demand_feature_view"
    title: ClassVar[str] = "OnDemandFeatureView"

    inputs: tuple[FeatureSelection | RequestSource, ...]
    fields: Schema
    mode: Mode = "python"
    code: str = ""
    """The function's source text from ``def`` on, for reading; it never runs from the registry."""
    code_hash: str = ""
    function: Callable[[Any], Any] | None = None
    """None where the definition came from the registry: code is only ever run from the feature repo."""

    def __init__(
        self,
        name: str,
        *,
        sources: Sequence[FeatureView | FeatureSelection | RequestSource],
        schema: Sequence[Field],
        function: Callable[[Any], Any] | None,
        mode: Mode = "python",
        code: str | None = None,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        text = _function_text(function) if code is None and function is not None else (code or "")
        self._fill(
            name,
            inputs=tuple(FeatureSelection(s) if isinstance(s, FeatureView) else s for s in as_tuple(sources)),
            fields=as_tuple(schema),
            mode=mode,
            code=text,
            code_hash=hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            function=function,
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )

    @model_validator(mode="after")
    def _check_inputs(self) -> OnDemandFeatureView:
        if not self.inputs:
            raise ValueError("sources: needs at least one view, selection or RequestSource")
        if all(isinstance(s, RequestSource) or s.view.fields is not None for s in self.inputs):
            check_unique_columns([name for s in self.inputs for name in input_names(s)])
        return self

    @property
    def features(self) -> tuple[Field, ...]:
        """The features it computes."""
        return self.fields

    @property
    def selections(self) -> tuple[FeatureSelection, ...]:
        """The stored features it reads."""
        return tuple(source for source in self.inputs if isinstance(source, FeatureSelection))

    @property
    def request_fields(self) -> tuple[Field, ...]:
        """The values that the caller must bring."""
        return tuple(f for source in self.inputs if isinstance(source, RequestSource) for f in source.fields)

    def __call__(self, inputs: Any) -> Any:
        """Run the function as it is, to try it out."""
        assert self.function is not None, f"the code of {self.name!r} is not loaded"
        return self.function(inputs)


def input_names(source: FeatureSelection | RequestSource) -> list[str]:
    """Return the names under which a function finds a source's values."""
    fields = source.fields if isinstance(source, RequestSource) else source.features
    return [field.name for field in fields]


def on_demand_feature_view(
    *,
    sources: Sequence[FeatureView | FeatureSelection | RequestSource],
    schema: Sequence[Field],
    mode: Mode = "python",
    name: str | None = None,
    description: str = "",
    owner: str = "",
    tags: Mapping[str, str] | None = None,
    deprecated: str = "",
) -> Callable[[Callable[[Any], Any]], OnDemandFeatureView]:
    """Make an on-demand feature view of the decorated function; its name and docstring are the defaults.

    The function must compute its results from its inputs alone, one value per row: a server runs it in several threads
    at once, and, before it is ready, for one row of nulls.
    """

    def decorate(function: Callable[[Any], Any]) -> OnDemandFeatureView:
        return OnDemandFeatureView(
            name or function.__name__,
            sources=sources,
            schema=schema,
            function=function,
            mode=mode,
            description=description or inspect.getdoc(function) or "",
            owner=owner,
            tags=tags,
            deprecated=deprecated,
        )

    return decorate


def _function_text(function: Callable[[Any], Any]) -> str:
    """Return the source from ``def`` on, so that a changed decorator is no change of code."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
        node = ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError):
        return ""  # typed into a bare interpreter: there is no text to keep
    if not isinstance(node, ast.FunctionDef):
        return text
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"
