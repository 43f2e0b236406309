"""Running on-demand functions: on Arrow for training sets, on lists for serving."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from featurestore.definitions import Field, OnDemandFeatureView, RequestSource
from featurestore.errors import CodeMismatchError, OnDemandError, ValueTypeError
from featurestore.registered.snapshot import Snapshot
from featurestore.request.conversion import canonical_values, to_nullable_series
from featurestore.types.arrow import arrow_type, cast_column, column_from_values, one_array
from featurestore.types.values import INTEGER_RANGES, ValueType, coerce

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_AS_THEY_ARE = {"Float64": float, "Bool": bool}
"""Types whose every Python value is canonical."""


class OnDemandFunction:
    """The checked code of one on-demand view. Raises CodeMismatchError when it differs from what was applied."""

    def __init__(self, snapshot: Snapshot, view: OnDemandFeatureView) -> None:
        function = snapshot.function(view.name)
        if function is None:
            loaded = view.name in snapshot.functions
            raise CodeMismatchError(
                f"The code of on-demand feature view {view.name!r} is "
                + ("not what was applied." if loaded else "not loaded: it runs from the feature repo only."),
                hint="Run `fs apply`, or go back to the code that was applied."
                if loaded
                else "Open the store from its feature repo.",
                view=view.name,
            )
        self.view = view
        self._function = function
        self._types: dict[str, ValueType] = {}
        for source in view.inputs:
            fields = source.fields if isinstance(source, RequestSource) else source.features
            self._types.update((field.name, field.type) for field in fields)

    def on_lists(self, inputs: Mapping[str, Sequence[Any]], rows: int) -> list[list[Any]]:
        """Return one list of canonical values per feature, from lists of canonical values by input name.

        Raises OnDemandError when the function fails or returns something else, ValueTypeError naming function,
        feature and row when a value is not of the declared type.
        """
        if rows == 0:
            return [[] for _ in self.view.features]
        if self.view.mode == "pandas":
            arrays = {name: column_from_values(list(values), self._types[name]) for name, values in inputs.items()}
            found = self._from_pandas(arrays, rows)
            return [
                canonical_values(column, field.type) for column, field in zip(found, self.view.features, strict=True)
            ]
        # A function may change the lists that it gets; the stored values in the same answer must not change with them.
        copied = {
            name: list(values) if self._types[name].item is None else deepcopy(list(values))
            for name, values in inputs.items()
        }
        returned = self._run(copied)
        return [self._checked_list(returned, field, rows) for field in self.view.features]

    def rehearse(self) -> None:
        """Run it for one row of nulls, so that its imports are loaded before a request waits for them."""
        with suppress(Exception):  # it may not accept nulls: requests will report that
            self.on_lists({name: [None] for name in self._types}, 1)

    def on_arrow(self, inputs: Mapping[str, pa.Array], rows: int) -> list[pa.Array]:
        """Return one Arrow array per feature, from arrays of the declared types. Raises as `on_lists`."""
        import pyarrow as pa

        if rows == 0:
            return [pa.array([], arrow_type(field.type)) for field in self.view.features]
        if self.view.mode == "pandas":
            return self._from_pandas(inputs, rows)
        lists = {name: canonical_values(column, self._types[name]) for name, column in inputs.items()}
        return [
            column_from_values(values, field.type)
            for values, field in zip(self.on_lists(lists, rows), self.view.features, strict=True)
        ]

    def _from_pandas(self, inputs: Mapping[str, pa.Array], rows: int) -> list[pa.Array]:
        import pandas as pd

        frame = pd.DataFrame(
            {name: to_nullable_series(column) for name, column in inputs.items()},
            index=pd.RangeIndex(rows),
        )
        returned = self._run(frame)
        return [self._checked_array(returned, field, rows) for field in self.view.features]

    def _run(self, inputs: Any) -> Any:
        try:
            returned = self._function(inputs)
        except BaseException as error:
            if not isinstance(error, Exception | SystemExit) and current_thread() is main_thread():
                raise  # an interrupt, which only the main thread is sent
            raise _failed(self.view.name, error) from None
        expected = "a DataFrame" if self.view.mode == "pandas" else "a dict of lists"
        if not (isinstance(returned, Mapping) or hasattr(returned, "columns")):
            raise self._wrong(f"{type(returned).__name__}, not {expected}")
        return returned

    def _column(self, returned: Any, field: Field, rows: int) -> Any:
        if field.name not in returned:
            names = ", ".join(map(repr, returned)) or "nothing"
            hint = f"Return {field.name!r}, or take it out of schema=."
            raise self._wrong(f"{names}, but no {field.name!r}", hint, feature=field.name)
        column = returned[field.name]
        if isinstance(column, str | bytes) or not hasattr(column, "__len__") or len(column) != rows:
            what = f"{len(column)} values" if hasattr(column, "__len__") else type(column).__name__
            hint = "Return one value per row, None where there is none."
            raise self._wrong(f"{what} of {field.name!r} for {rows} rows", hint, feature=field.name)
        return column

    def _checked_list(self, returned: Any, field: Field, rows: int) -> list[Any]:
        values = list(self._column(returned, field, rows))
        if _is_canonical(field.type, values):
            return values
        checked = []
        for row, value in enumerate(values):
            try:
                checked.append(coerce(field.type, value))
            except ValueTypeError as error:
                raise self._wrong_value(field, f"row {row}: {error.message}", row=row) from None
        return checked

    def _checked_array(self, returned: Any, field: Field, rows: int) -> pa.Array:
        import pandas as pd
        import pyarrow as pa

        column = self._column(returned, field, rows)
        series: pd.Series = column if isinstance(column, pd.Series) else pd.Series(column)
        if series.dtype == object or field.type.item is not None:
            values = [None if value is None or value is pd.NA else value for value in series]
            return column_from_values(self._checked_list({field.name: values}, field, rows), field.type)
        try:
            return cast_column(one_array(pa.array(series)), field.type, name=field.name)
        except ValueTypeError as error:
            raise self._wrong_value(field, str(error)) from None

    def _wrong(self, returned: str, hint: str = "", **details: Any) -> OnDemandError:
        message = f"The on-demand feature view {self.view.name!r} returned {returned}."
        return OnDemandError(message, hint=hint, view=self.view.name, **details)

    def _wrong_value(self, field: Field, message: str, **details: Any) -> ValueTypeError:
        return ValueTypeError(
            f"On-demand feature view {self.view.name!r}, feature {field.name!r}: {message}",
            view=self.view.name,
            feature=field.name,
            **details,
        )


def _is_canonical(value_type: ValueType, values: Sequence[Any]) -> bool:
    """Tell, quickly, whether `coerce` would return every value unchanged; False where that is not clear."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return True
    if value_type.name in INTEGER_RANGES and kinds == {int}:
        low, high = INTEGER_RANGES[value_type.name]
        found = [value for value in values if value is not None]
        return bool(low <= min(found) and max(found) <= high)
    return kinds == {_AS_THEY_ARE.get(value_type.name)}


def _failed(view: str, error: BaseException) -> OnDemandError:
    """Return the error that reports a function's failure, with the user's own frames."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return OnDemandError(
        f"The on-demand feature view {view!r} failed with {type(error).__name__}: {error}{where}.",
        hint="Correct the function; values may be None.",
        view=view,
        traceback="".join([*traceback.format_list(frames), f"{type(error).__name__}\n"]),
    )
