"""What all definitions share: frozen, typed, validated when they are made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, SerializeAsAny, ValidationError, model_validator
from typing_extensions import override

from featurestore.definitions.expectations import FieldRule
from featurestore.errors import DefinitionError, ValueTypeError
from featurestore.tables import html_table
from featurestore.types import ValueType
from featurestore.types.columns import CREATED, EVENT, FILE_NUMBER, FILE_ROW
from featurestore.types.times import MICROSECOND, duration_text
from featurestore.types.values import coerce

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

OBJECT_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,126}")
RESERVED_PREFIX = "fs_"
RESERVED_COLUMNS = frozenset({EVENT, CREATED, FILE_NUMBER, FILE_ROW})
"""Columns of every offline table besides keys and features, and those that reading it adds."""


def check_object_name(name: str) -> str:
    """Return the name; raises ValueError when it is ill-formed or reserved."""
    if not OBJECT_NAME.fullmatch(name):
        raise ValueError("a name is a lower-case letter followed by at most 62 of a-z, 0-9 and _")
    if name.startswith(RESERVED_PREFIX):
        raise ValueError(f"names that start with {RESERVED_PREFIX!r} are reserved")
    return name


def check_column_name(name: str) -> str:
    """Return the name of a feature or join key; raises ValueError when it is ill-formed or reserved."""
    if not COLUMN_NAME.fullmatch(name):
        raise ValueError("a column name is a letter or _ followed by at most 126 of A-Z, a-z, 0-9 and _")
    if name.lower().startswith(RESERVED_PREFIX) or name.lower() in RESERVED_COLUMNS:
        reserved = ", ".join([f"{RESERVED_PREFIX}*", *sorted(RESERVED_COLUMNS)])
        raise ValueError(f"this column name is reserved ({reserved})")
    return name


ObjectName = Annotated[str, AfterValidator(check_object_name)]
ColumnName = Annotated[str, AfterValidator(check_column_name)]


def check_unique_columns(names: Iterable[str]) -> None:
    """Raise ValueError as `twins` reports it."""
    if problems := twins(names):
        raise ValueError(problems[0])


def twins(names: Iterable[str]) -> list[str]:
    """Return a message for each two columns whose names are equal or differ only in case: engines would mix them up."""
    seen: dict[str, str] = {}
    problems = []
    for name in names:
        key = name.lower()
        if key not in seen:
            seen[key] = name
        elif seen[key] == name:
            problems.append(f"two columns are called {name!r}")
        else:
            problems.append(f"columns {seen[key]!r} and {name!r} differ only in case")
    return problems


def as_tuple(values: Any) -> Any:
    """Return a list or tuple as a tuple; anything else unchanged, so that the validator names it."""
    return tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else values


def as_dict(values: Any) -> Any:
    """Return a mapping as a dict and None as an empty one; anything else unchanged, so that the validator names it."""
    return {} if values is None else dict(values) if isinstance(values, Mapping) else values


class FrozenModel(BaseModel):
    """A frozen pydantic model whose validation errors are DefinitionErrors naming field and value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=False)

    kind: ClassVar[str]
    title: ClassVar[str]

    def __str__(self) -> str:
        return repr(self)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the fields that were set, called as in the constructor; other definitions appear by name."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in _NOT_SHOWN and value != field.get_default(call_default_factory=True):
                yield _ARGUMENTS.get(name, name), _by_name(value)


class Part(FrozenModel):
    """A part of a definition that needs no name, such as a rule."""

    def _fill(self, **values: Any) -> None:
        """Validate and set every field; the ``__init__`` of each class calls it with what it was given."""
        try:
            BaseModel.__init__(self, **values)
        except ValidationError as error:
            raise _definition_error(self.title, None, error) from None

    def __hash__(self) -> int:
        return hash(repr(self))

    def replaced(self, **values: Any) -> Self:
        """Return a copy with other values, validated again."""
        made = type(self).__new__(type(self))
        made._fill(**{**{field: getattr(self, field) for field in type(self).model_fields}, **values})
        return made


class Named(FrozenModel):
    """Something with a name, by which messages speak of it."""

    name: str

    def _fill(self, name: str, **values: Any) -> None:
        """Validate and set every field; the ``__init__`` of each class calls it with what it was given."""
        try:
            BaseModel.__init__(self, name=name, **values)
        except ValidationError as error:
            raise _definition_error(self.title, name, error) from None

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the name without a word, then the fields that were set."""
        yield None, self.name
        yield from super().__repr_args__()

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():  # computed of the old values
            del copied.__dict__[name]
        return copied

    def replaced(self, **values: Any) -> Self:
        """Return a copy with other values, validated again."""
        made = type(self).__new__(type(self))
        made._fill(**{**{field: getattr(self, field) for field in type(self).model_fields}, **values})
        return made


class Definition(Named):
    """A named object of a feature repo."""

    name: ObjectName
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}
    deprecated: str = ""
    """What to use instead, such as "use driver_stats_v2"; empty for what may be used."""

    @property
    def key(self) -> str:
        """``kind:name``, unique in a project."""
        return f"{self.kind}:{self.name}"

    def _repr_html_(self) -> str:
        said = {name: value for name, value in self.__repr_args__() if name is not None}
        fields = said.pop("schema", ())
        if code := getattr(self, "code", ""):
            said["code"] = code
        facts = html_table((name, _told(value)) for name, value in said.items())
        columns = html_table(((f.name, f.type, f.description) for f in fields), ("feature", "type", "description"))
        head = f"<p><b>{escape(self.kind.replace('_', ' '))} {escape(self.name)}</b></p>"
        return head + facts + (columns if fields else "")


class Field(Named):
    """One feature of a view, or one value of a request.

    An online read answers ``default`` instead of null when a value is not PRESENT; the status stays true. In
    training sets such a value stays null: fill it there too, or a model meets values that it was not trained on.
    """

    kind: ClassVar[str] = "field"
    title: ClassVar[str] = "Field"

    name: ColumnName
    type: ValueType
    description: str = ""
    tags: dict[str, str] = {}
    default: Any = None
    deprecated: str = ""
    expect: tuple[SerializeAsAny[FieldRule], ...] = ()
    """What its values are expected to be; of fields of feature views only."""

    def __init__(
        self,
        name: str,
        type: ValueType,
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        default: Any = None,
        deprecated: str = "",
        expect: Sequence[FieldRule] = (),
    ) -> None:
        self._fill(
            name,
            type=type,
            description=description,
            tags=as_dict(tags),
            default=default,
            deprecated=deprecated,
            expect=as_tuple(expect),
        )

    @model_validator(mode="before")
    @classmethod
    def _fit_to_type(cls, values: Any) -> Any:
        # Before the model is made: what a validator returns instead of it would be thrown away by `__init__`.
        if not isinstance(values, dict) or not isinstance(values.get("type"), ValueType):
            return values
        kind, expect = values["type"], values.get("expect", ())
        try:
            values = {**values, "default": coerce(kind, values.get("default"))}
        except ValueTypeError as error:
            raise ValueError(f"default: {error.message.rstrip('.')}") from None
        if not isinstance(expect, tuple) or not all(isinstance(rule, FieldRule) for rule in expect):
            return values  # the validator names what is none
        try:
            return {**values, "expect": tuple(rule.fitted(kind) for rule in expect)}
        except ValueError as error:
            raise ValueError(f"expect: {error}") from None


def _check_schema(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    if not fields:
        raise ValueError("schema needs at least one Field")
    check_unique_columns([field.name for field in fields])
    if ruled := next((field.name for field in fields if field.expect), None):
        raise ValueError(f"{ruled}: expect: only what feature views store is checked")
    return fields


Schema = Annotated[tuple[Field, ...], AfterValidator(_check_schema)]

_NOT_SHOWN = frozenset({"name", "code", "code_hash", "function"})
"""Fields that a repr leaves out: they are long, or users did not write them."""

_ARGUMENTS = {"fields": "schema", "sources": "source", "inputs": "sources"}
"""What the constructors call a field, where that is another name."""


def _by_name(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_by_name, value))
    return value.name if isinstance(value, Definition) else value


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_told, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_told(item)}" for name, item in value.items())
    if isinstance(value, timedelta):
        return duration_text(value // MICROSECOND)
    return repr(value) if isinstance(value, FrozenModel) else str(value)


def _definition_error(title: str, name: object, error: ValidationError) -> DefinitionError:
    """Translate pydantic's first complaint; the rest usually follow from it."""
    errors = error.errors(include_url=False)
    first, message = errors[0], _plain_message(errors)
    # Where several classes are allowed, pydantic appends the class that it tried: users did not write that.
    is_choice = first["type"] == "model_type" and isinstance(first["loc"][-1], str) and len(first["loc"]) > 1
    location = ".".join(str(part) for part in (first["loc"][:-1] if is_choice else first["loc"]))
    about_whole = not location or first["type"] == "missing"
    shown = "" if about_whole else f" (got {_shorten(first.get('input'))})"
    of = title if name is None else f"{title} {name!r}"
    return DefinitionError(
        f"{of}: {location + ': ' if location else ''}{message}{shown}.",
        object=name,
        field=location,
    )


def _plain_message(errors: Sequence[ErrorDetails]) -> str:
    """Return the first error's message, in the words of the definition's author."""
    first = errors[0]
    if first["type"] == "model_type":
        # Each member of a union reports its own error, one place further down.
        place = first["loc"][:2]
        same = (each for each in errors if each["type"] == "model_type" and each["loc"][:2] == place)
        classes = dict.fromkeys(each["ctx"]["class_name"] for each in same)
        return f"must be {' or '.join(classes)}"
    if first["type"] in ("tuple_type", "list_type"):
        return "must be a list"
    if first["type"] == "dict_type":
        return "must be a dict"
    if first["type"] == "time_delta_type":
        return "must be a timedelta, such as timedelta(days=7)"
    message = first["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
