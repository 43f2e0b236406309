"""The one table of value types: ours, Arrow, DuckDB, Python, JSON.

Every conversion between these vocabularies is in `featurestore.types`, and nowhere else.

=============  ====================  ==============  ===================  =======================
Type           Arrow                 DuckDB          Python               JSON
=============  ====================  ==============  ===================  =======================
Int32, Int64   int32, int64          INTEGER BIGINT  int                  number
Float32, 64    float32, float64      FLOAT DOUBLE    float                number; NaN, inf: null
Bool           bool                  BOOLEAN         bool                 true, false
String         string                VARCHAR         str                  string
Bytes          binary                BLOB            bytes                base64 string
Timestamp      timestamp[us, UTC]    TIMESTAMPTZ     datetime (aware)     RFC 3339 with µs
Date           date32                DATE            date                 ISO 8601
Decimal(p, s)  decimal128(p, s)      DECIMAL(p, s)   decimal.Decimal      string
Array(T)       list<T>               T[]             list                 array
=============  ====================  ==============  ===================  =======================
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Context, InvalidOperation
from decimal import Decimal as PythonDecimal
from typing import TYPE_CHECKING, Any

from featurestore.errors import DefinitionError, ValueTypeError
from featurestore.tables import WHOLE_FLOAT_LIMITS, float_bits
from featurestore.types.times import to_datetime, to_instant, to_rfc3339

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

AMBIGUOUS = "a float of this size may stand for several integers"


@dataclass(frozen=True, slots=True)
class ValueType:
    """A value type. Compare with ``==``; ``str()`` gives the text that `parse_type` reads."""

    name: str
    precision: int | None = None
    scale: int | None = None
    item: ValueType | None = None

    def __str__(self) -> str:
        if self.item is not None:
            return f"Array({self.item})"
        if self.precision is not None:
            return f"Decimal({self.precision},{self.scale})"
        return self.name

    __repr__ = __str__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        def read(value: Any) -> ValueType:
            if isinstance(value, ValueType):
                return value
            if isinstance(value, str):
                return parse_type(value)
            raise ValueError(f"{value!r} is not a value type; use one of featurestore.types, such as Int64")

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


Int32 = ValueType("Int32")
Int64 = ValueType("Int64")
Float32 = ValueType("Float32")
Float64 = ValueType("Float64")
Bool = ValueType("Bool")
String = ValueType("String")
Bytes = ValueType("Bytes")
Timestamp = ValueType("Timestamp")
Date = ValueType("Date")

SCALARS = {t.name: t for t in (Int32, Int64, Float32, Float64, Bool, String, Bytes, Timestamp, Date)}
JOIN_KEY_TYPES = (Int32, Int64, String, Bool, Date, Bytes)
INTEGER_RANGES = {"Int32": (-(2**31), 2**31 - 1), "Int64": (-(2**63), 2**63 - 1)}
_DUCKDB = {
    "Int32": "INTEGER",
    "Int64": "BIGINT",
    "Float32": "FLOAT",
    "Float64": "DOUBLE",
    "Bool": "BOOLEAN",
    "String": "VARCHAR",
    "Bytes": "BLOB",
    "Timestamp": "TIMESTAMPTZ",
    "Date": "DATE",
}


def Decimal(precision: int, scale: int = 0) -> ValueType:  # noqa: N802 - it reads as a type
    """Return the type of exact decimals of ``precision`` digits (1-38), ``scale`` of them after the point."""
    if not (1 <= precision <= 38 and 0 <= scale <= precision):
        raise DefinitionError(
            f"Decimal({precision}, {scale}) is not a type.",
            hint="Use 1 <= precision <= 38 and 0 <= scale <= precision.",
        )
    return ValueType("Decimal", precision=precision, scale=scale)


def Array(item: ValueType) -> ValueType:  # noqa: N802 - it reads as a type
    """Return the type of lists of ``item`` values, which may hold nulls and may be nested."""
    if not isinstance(item, ValueType):
        raise DefinitionError(f"Array({item!r}) is not a type.", hint="Pass a value type, such as Array(Int64).")
    return ValueType("Array", item=item)


_DECIMAL_TEXT = re.compile(r"Decimal\((\d{1,2}), ?(\d{1,2})\)")


def parse_type(text: str) -> ValueType:
    """Return the type that a text names, for example ``Int64``, ``Decimal(10,2)`` or ``Array(String)``.

    Raises DefinitionError for anything else.
    """
    if text in SCALARS:
        return SCALARS[text]
    if match := _DECIMAL_TEXT.fullmatch(text):
        return Decimal(int(match[1]), int(match[2]))
    if text.startswith("Array(") and text.endswith(")"):
        return Array(parse_type(text[6:-1]))
    raise DefinitionError(
        f"{text!r} is not a value type.", hint=f"Known are: {', '.join(SCALARS)}, Decimal(p, s), Array(T)."
    )


def duckdb_type(value_type: ValueType) -> str:
    """Return DuckDB's name of the type."""
    if value_type.item is not None:
        return f"{duckdb_type(value_type.item)}[]"
    if value_type.precision is not None:
        return f"DECIMAL({value_type.precision},{value_type.scale})"
    return _DUCKDB[value_type.name]


def is_widening(old: ValueType, new: ValueType) -> bool:
    """Tell whether ``old`` widens to ``new`` without loss: Int32 to Int64, Float32 to Float64."""
    return (old.name, new.name) in {("Int32", "Int64"), ("Float32", "Float64")}


class CoarseFloat(float):
    """A float that a library held in 16 or 32 bits, so that it may stand for several integers."""


def from_library(value: Any, kind: Any) -> Any:
    """Return a library's value or list of type ``kind``, already in Python, with coarse floats marked."""
    bits = float_bits(kind)
    return value if bits == 64 else _marked(value, WHOLE_FLOAT_LIMITS[bits])


def _marked(value: Any, limit: int) -> Any:
    if isinstance(value, list):
        return [_marked(item, limit) for item in value]
    return CoarseFloat(value) if isinstance(value, float) and abs(value) >= limit else value


PYTHON_KINDS: dict[str, type] = {
    "Int32": int,
    "Int64": int,
    "Float32": float,
    "Float64": float,
    "Bool": bool,
    "String": str,
    "Bytes": bytes,
    "Timestamp": datetime,
    "Date": date,
    "Decimal": PythonDecimal,
    "Array": list,
}
"""The Python types of canonical values: no library's scalars, arrays or missing values belong to them."""
_OWN_KINDS = frozenset(PYTHON_KINDS.values())
_NO_ARRAYS = (str, bytes, int, float, list, date)


def coerce(value_type: ValueType, value: Any) -> Any:
    """Return ``value`` as the type's canonical Python value, or None for None.

    Accepts the canonical value, numpy and pandas scalars of the same kind, an int for a float, and a whole float for
    an integer (pandas turns integers with nulls into floats) below the limit of its bits (`WHOLE_FLOAT_LIMITS`). Never
    guesses: a string is not a number, ``True`` is not an integer. pandas' missing values (NaT, NA) are None; NaN is a
    float.

    Raises ValueTypeError naming the value and the type.
    """
    if value is None:
        return None
    if type(value) not in _OWN_KINDS:
        if not isinstance(value, _NO_ARRAYS) and hasattr(value, "item"):
            listed = value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
            value = from_library(listed, getattr(value, "dtype", ""))
        if type(value).__name__ in ("NaTType", "NAType"):
            return None
    try:
        return _COERCIONS[value_type.name](value_type, value)
    except (TypeError, ValueError, OverflowError, InvalidOperation):
        raise ValueTypeError(
            f"{_shorten(value)} ({_kind(value)}) is not a value of type {value_type}{_why_not(value_type, value)}.",
            value_type=str(value_type),
        ) from None


def _kind(value: Any) -> str:
    return "float" if isinstance(value, CoarseFloat) else type(value).__name__


def _why_not(value_type: ValueType, value: Any) -> str:
    is_whole = value_type.name in INTEGER_RANGES and isinstance(value, float) and value.is_integer()
    return f": {AMBIGUOUS}" if is_whole and not _is_certain(value) else ""


def _is_certain(number: float) -> bool:
    return abs(number) < WHOLE_FLOAT_LIMITS[64] and not isinstance(number, CoarseFloat)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _integer(value_type: ValueType, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, float):
        if not value.is_integer() or not _is_certain(value):
            raise ValueError
        value = int(value)
    if not isinstance(value, int):
        raise TypeError
    low, high = INTEGER_RANGES[value_type.name]
    if not low <= value <= high:
        raise OverflowError
    return value


_NUMBERS = (int, float)
_FLOAT32 = struct.Struct("<f")


def _float(value_type: ValueType, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError
    number = float(value)
    if isinstance(value, int) and int(number) != value:
        raise ValueError
    if value_type.name == "Float32":
        return float(_FLOAT32.unpack(_FLOAT32.pack(number))[0])
    return number


def _bool(_: ValueType, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _string(_: ValueType, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # a lone surrogate is not a text: UnicodeEncodeError is a ValueError
    return str(value)


def _bytes(_: ValueType, value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError
    return bytes(value)


def _timestamp(_: ValueType, value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError
    if type(value) is datetime and value.tzinfo is UTC and not value.fold:
        return value
    return to_datetime(to_instant(value))


def _date(_: ValueType, value: Any) -> date:
    if isinstance(value, datetime) or not isinstance(value, date):
        raise TypeError
    return value


_DECIMALS = (PythonDecimal, int)
_UNITS = [PythonDecimal((0, (1,), -scale)) for scale in range(39)]
"""1, 0.1, 0.01, …: the unit of the last digit for each scale."""
_EXACT = Context(prec=76)


def _decimal(value_type: ValueType, value: Any) -> PythonDecimal:
    if isinstance(value, bool) or not isinstance(value, _DECIMALS):
        raise TypeError
    assert value_type.precision is not None
    assert value_type.scale is not None
    number = PythonDecimal(value)
    if not number.is_finite():
        raise ValueError
    scaled = _EXACT.quantize(number, _UNITS[value_type.scale])
    if scaled != number or scaled.adjusted() + value_type.scale >= value_type.precision:
        raise ValueError
    return scaled


def _array(value_type: ValueType, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError
    assert value_type.item is not None
    return [coerce(value_type.item, item) for item in value]


_COERCIONS: dict[str, Any] = {
    "Int32": _integer,
    "Int64": _integer,
    "Float32": _float,
    "Float64": _float,
    "Bool": _bool,
    "String": _string,
    "Bytes": _bytes,
    "Timestamp": _timestamp,
    "Date": _date,
    "Decimal": _decimal,
    "Array": _array,
}


def to_json(value_type: ValueType, value: Any) -> Any:
    """Return the JSON value for a canonical Python value; NaN and infinities become None."""
    if value is None:
        return None
    name = value_type.name
    if name in ("Float32", "Float64"):
        return value if math.isfinite(value) else None
    if name == "Timestamp":
        return to_rfc3339(to_instant(value))
    if name == "Date":
        return value.isoformat()
    if name == "Decimal":
        return format(value, "f")
    if name == "Bytes":
        return base64.b64encode(value).decode()
    if value_type.item is not None:
        return [to_json(value_type.item, item) for item in value]
    return value


def from_json(value_type: ValueType, value: Any) -> Any:
    """Return the canonical Python value of a JSON value.

    Int64 also takes a canonical decimal string, because JavaScript rounds large numbers. Raises ValueTypeError.
    """
    if value is None:
        return None
    name = value_type.name
    try:
        if name == "Int64" and isinstance(value, str):
            if str(int(value)) != value:
                raise ValueError
            value = int(value)
        elif name == "Timestamp" and isinstance(value, str):
            try:
                return _timestamp(value_type, datetime.fromisoformat(value))
            except ValueError:
                return to_datetime(to_instant(value))  # raises the error that this is not an instant
        elif name == "Date" and isinstance(value, str):
            return date.fromisoformat(value)
        elif name == "Decimal" and isinstance(value, str):
            value = PythonDecimal(value)
        elif name == "Bytes" and isinstance(value, str):
            return base64.b64decode(value, validate=True)
        elif value_type.item is not None and isinstance(value, list):
            return [from_json(value_type.item, item) for item in value]
    except (ValueError, InvalidOperation, binascii.Error):
        raise ValueTypeError(
            f"{_shorten(value)} is not a value of type {value_type}.", value_type=str(value_type)
        ) from None
    return coerce(value_type, value)
