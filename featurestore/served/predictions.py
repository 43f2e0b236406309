"""The form of logged predictions: what a model made of an answer's rows, by request id, row and model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from unicodedata import category

from featurestore.definitions.base import check_column_name, twins
from featurestore.errors import InputError
from featurestore.served.files import FORMAT
from featurestore.served.shape import INSTANCE, MODEL, PREDICTED_AT, PREDICTION, REQUEST_ID, ROW

if TYPE_CHECKING:
    import pyarrow as pa

USABLE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
"""What a request id looks like, as in the header of an answer."""
MOST_EXACT = 2**53
"""Whole numbers beyond it need more digits than float64 has."""

Form = Literal["number", "text", "bool", "nothing"]
"""What the values of a prediction are; nothing where all are null."""
FORMS: Mapping[Form, str] = {"number": "numbers", "text": "texts", "bool": "booleans", "nothing": "nulls"}
"""How messages call them."""
_BYTES, _BYTES_A_NAME = 400, 250
"""About what a prediction takes in memory besides its texts and values."""


class KeptFor(NamedTuple):
    """The service that predictions are of, as files need it."""

    service: str
    project: str
    """The project's identity."""
    retention_us: int


class Prediction(NamedTuple):
    """What one model predicted for the rows of one request."""

    kept_for: KeptFor
    request_id: str
    at_us: int
    """When a server took it."""
    model: str
    rows: int
    columns: Mapping[str, Sequence[Any]]
    """For each name one value, as `checked` gives them, for each row."""
    forms: tuple[tuple[str, Form], ...]
    """For each name, sorted, what its values are."""


def checked(
    kept_for: KeptFor, request_id: str, at_us: int, model: str, values: Mapping[str, Sequence[Any]]
) -> tuple[Prediction, int]:
    """Return a prediction and about how many bytes it takes; raises InputError naming what is wrong with it."""
    if not USABLE_ID.fullmatch(request_id):
        raise InputError(
            f"{request_id!r} is not the id of a request: it has at most 128 letters, digits and ._:/+=-.",
            hint="Send the X-Request-ID of the answer.",
        )
    if any(category(sign) == "Cc" for sign in model):
        raise InputError(
            f"The model {model!r} has a control character in its name.", hint="Send its name and version as a text."
        )
    if not values:
        raise InputError("There are no values.", hint='Send them by name: {"delay": [12.5]}.')
    for name in values:
        try:
            check_column_name(name)
        except ValueError as error:
            raise InputError(f"{name!r} is not a name for a prediction: {error}.") from None
    if problems := twins(values):
        raise InputError(f"Of these predictions {problems[0]}.", hint="Give them names that differ.")
    lengths = {name: len(column) for name, column in values.items()}
    if len(set(lengths.values())) > 1:
        first, second = (name for name, _ in sorted(lengths.items(), key=lambda item: item[1])[:: len(lengths) - 1])
        raise InputError(
            f"{first!r} has {lengths[first]} values and {second!r} has {lengths[second]}.",
            hint="Send one value for each entity row of the request, null where there is none.",
        )
    columns, forms, size = {}, {}, _BYTES + getsizeof(model)
    for name, column in values.items():
        columns[name], forms[name] = _column(name, column)
        size += _BYTES_A_NAME + 8 * len(column) + sum(map(getsizeof, columns[name]))
    rows = next(iter(lengths.values()))
    return Prediction(kept_for, request_id, at_us, model, rows, columns, tuple(sorted(forms.items()))), size


def _column(name: str, values: Sequence[Any]) -> tuple[Sequence[Any], Form]:
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return values, "nothing"
    if kinds == {bool}:
        return values, "bool"
    if kinds == {str}:
        return values, "text"
    if kinds <= {int, float}:
        beyond = next((value for value in values if type(value) is int and abs(value) > MOST_EXACT), None)
        if beyond is not None:
            raise InputError(
                f"The prediction {name!r} holds {str(beyond)[:40]}: numbers are kept as float64, which does not hold "
                "it exactly.",
                hint="Send it as a text.",
            )
        return [None if value is None else float(value) for value in values], "number"
    wrong = next((value for value in values if type(value) not in (bool, str, int, float, type(None))), None)
    what = "a list or an object" if wrong is not None else "of several kinds"
    raise InputError(
        f"A value of the prediction {name!r} is {what}." if wrong is not None else f"{name!r} has values {what}.",
        hint="Send numbers, texts or booleans, one kind for each prediction, and null where there is none.",
    )


_FORM_OF: Mapping[str, Form] = {"double": "number", "string": "text", "bool": "bool", "null": "nothing"}
"""The forms by Arrow's types."""


def _kind(form: Form) -> pa.DataType:
    import pyarrow as pa

    return {"number": pa.float64(), "text": pa.string(), "bool": pa.bool_(), "nothing": pa.null()}[form]


def schema_of(forms: Mapping[str, Form]) -> pa.Schema:
    """Return the columns of a log of predictions."""
    import pyarrow as pa

    return pa.schema(
        [
            (REQUEST_ID, pa.string()),
            (ROW, pa.int32()),
            (PREDICTED_AT, pa.timestamp("us", "UTC")),
            (MODEL, pa.string()),
            (INSTANCE, pa.string()),
            *((PREDICTION + name, _kind(form)) for name, form in forms.items()),
        ]
    )


def table_of(members: Sequence[Prediction], instance: str) -> pa.Table:
    """Return predictions of the same names and forms as one table."""
    import numpy as np
    import pyarrow as pa

    schema = schema_of(dict(members[0].forms))
    counts = [member.rows for member in members]
    total = sum(counts)

    def repeated(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(np.repeat(np.arange(len(counts)), counts)))

    columns = [
        repeated([member.request_id for member in members], pa.string()),
        pa.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts]), pa.int32()),
        repeated([member.at_us for member in members], pa.int64()).cast(pa.timestamp("us", "UTC")),
        repeated([member.model for member in members], pa.string()),
        pa.repeat(instance, total),
    ]
    for name, _ in members[0].forms:
        values = [value for member in members for value in member.columns[name]]
        columns.append(pa.array(values, schema.field(PREDICTION + name).type))
    return pa.table(columns, schema=schema)


def by_model(rows: pa.Table, kept_for: KeptFor) -> Iterator[Prediction]:
    """Yield for each model in a file its names and forms, and how many rows it has, without the values."""
    names = [name for name in rows.column_names if name.startswith(PREDICTION)]
    forms = {name.removeprefix(PREDICTION): _FORM_OF.get(str(rows.schema.field(name).type)) for name in names}
    known = tuple((name, form) for name, form in sorted(forms.items()) if form is not None)
    for count in rows.column(MODEL).value_counts().to_pylist():
        yield Prediction(kept_for, "", 0, count["values"], count["counts"], {}, known)


def about_predictions(of: KeptFor) -> dict[str, Any]:
    """Return the metadata of a file of predictions."""
    return {
        "format": FORMAT,
        "service": of.service,
        "project": of.project,
        "revision": "",
        "keys": "plain",
        "key_id": "",
        "retention_us": of.retention_us,
        "join_keys": {},
        "views": {},
    }
