"""Value types, as users write them: ``from featurestore.types import Array, Float64, Int64, String``."""

from featurestore.types.values import (
    Array,
    Bool,
    Bytes,
    Date,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    ValueType,
    parse_type,
)

__all__ = [
    "Array",
    "Bool",
    "Bytes",
    "Date",
    "Decimal",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "String",
    "Timestamp",
    "ValueType",
    "parse_type",
]
