"""How commands speak: one small interface for text and JSON. Errors go to standard error as a cause chain."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import logging
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.exits import EXIT_CONFLICT, EXIT_FAILED, EXIT_WAITING
from featurestore.cli.shared import given, shared_options
from featurestore.cli.streams import is_output_lost, is_unicode
from featurestore.cli.tables import table
from featurestore.errors import ApprovalNeededError, FeatureStoreError, RevisionConflictError
from featurestore.tables import visible, visible_lines

if TYPE_CHECKING:
    from rich.console import Console

    from featurestore.ledger.runs import RunResult


class Output:
    """What a command prints with: text for people, or one JSON document with ``--json``."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

        self.lost = ""
        """Why standard output or error could not be written, where `surviving` met that."""

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """Go on behind the block where what it prints cannot be written: `lost` then says why."""
        try:
            yield
        except OSError as error:
            if not (is_output_lost(error) or isinstance(error, BrokenPipeError)):
                raise
            self.lost = error.strerror or type(error).__name__

    @functools.cached_property
    def console(self) -> Console:
        """The console that text goes to. Lines are not wrapped where there is no terminal."""
        from rich.console import Console

        class Lasting(Console):
            def on_broken_pipe(self) -> None:
                """Raise the error on, where rich would end the process: not all is done when something is printed."""
                raise

        terminal = sys.stdout.isatty()
        return Lasting(highlight=False, emoji=False, soft_wrap=not terminal, width=None if terminal else 200)

    def emit(self, document: Any) -> None:
        """Print the document with ``--json``; people get what `say` and `table` print."""
        if self.as_json:
            click.echo(_json(jsonable(document), sys.stdout, indent=2))

    def say(self, *parts: str | tuple[str, str], style: str = "", soft_wrap: bool | None = None) -> None:
        """Print a line for people only; its parts are texts, or texts with a style of their own."""
        if not self.as_json:
            from rich.text import Text

            shown = [visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts]
            self.console.print(Text.assemble(*shown, style=style), soft_wrap=soft_wrap)

    def say_error(self, run: RunResult) -> None:
        """Print why a run failed, if it did, to standard error; ``--json`` has it in the document."""
        if run.error is not None and not self.as_json:
            _labelled("Error", "red", f"{run.view}: {run.error}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], **layout: Sequence[str]) -> None:
        """Print a table for people only; see `tables.table`."""
        if not self.as_json:
            table(self.console, columns, rows, **layout)

    def note(self, text: str) -> None:
        """Print a remark to standard error, also with ``--json``."""
        _labelled("Note", "yellow", text)


def _labelled(label: str, color: str | None, text: str) -> None:
    click.echo(f"{click.style(label, fg=color, bold=True)}: {visible_lines(text)}", err=True)


def _json(document: Any, stream: Any, **layout: Any) -> str:
    """Return a document as JSON; what a terminal would obey is escaped in it."""
    text = json.dumps(document, ensure_ascii=not is_unicode(stream), allow_nan=False, **layout)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def confirmed(question: str, without_terminal: str, *, abort: bool = True) -> bool:
    """Ask a person; a no ends the command with ``abort``. Raises UsageError where there is no terminal."""
    if not sys.stdin.isatty():
        raise click.UsageError(without_terminal)
    return click.confirm(question, abort=abort, err=True)


def jsonable(value: Any) -> Any:
    """Return a result object as JSON: dataclasses as objects, instants and dates as ISO 8601, durations in seconds.

    Bytes are base64 as over HTTP. NaN and infinities, which JSON does not have, are null.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Sequence | set | frozenset):
        return [jsonable(item) for item in value]
    return str(value)


def shown(value: Any) -> str:
    """Return a value of a feature as a person reads it."""
    return "null" if value is None else str(value if isinstance(value, float) else jsonable(value))


def described(description: str, deprecated: str) -> str:
    """Return a description behind what is deprecated, if it is."""
    told = f"deprecated: {deprecated.rstrip('.')}" if deprecated else ""
    return ". ".join(filter(None, [told, description]))


def _has_registry(values: Mapping[str, Any]) -> bool:
    return bool(values.get("registry_url"))


def repo_command(
    function: Callable[..., Any], *, is_anywhere: Callable[[Mapping[str, Any]], bool] = _has_registry
) -> Callable[..., Any]:
    """Give a command ``--repo``, ``--json`` and ``--debug``; it receives ``store`` and ``output``.

    ``is_anywhere`` tells whether it needs no repo for its values, as one with a ``registry_url`` does not.
    """

    @shared_options()
    @functools.wraps(function)
    def run(*args: Any, **values: Any) -> Any:
        from featurestore.cli.progress import showing_progress
        from featurestore.store import FeatureStore

        as_json = bool(given("as_json"))
        repo = {"project": "none"} if is_anywhere(values) else given("repo") or Path()
        own = {name: value for name, value in values.items() if name not in ("repo", "as_json", "debug")}
        with (
            _logging(debug=bool(given("debug"))),
            _notes(),
            FeatureStore(repo) as store,
            showing_progress(quiet=as_json),
        ):
            return function(*args, store=store, output=Output(as_json=as_json), **own)

    return run


@contextmanager
def _notes() -> Iterator[None]:
    """Print Python's warnings as notes: those of training sets, and of the user's own code with its place."""

    def show(
        message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        where = "" if category.__module__.startswith("featurestore.") else f"{filename}:{lineno}: "
        _labelled("Note", "yellow", f"{where}{message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class _Lines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return visible_lines(super().formatMessage(record))


@contextmanager
def _logging(*, debug: bool) -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(levelname)s: %(message)s"))
    logger = logging.getLogger("featurestore")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def show_error(error: Exception, *, as_json: bool, debug: bool) -> int:
    """Print an error to standard error and return the exit code it stands for."""
    codes: dict[type[Exception], int] = {RevisionConflictError: EXIT_CONFLICT, ApprovalNeededError: EXIT_WAITING}
    code = codes.get(type(error), EXIT_FAILED)
    if debug:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if as_json:
        details = error.details if isinstance(error, FeatureStoreError) else {}
        document = {"type": type(error).__name__, "message": str(error), "details": jsonable(details)}
        click.echo(_json({"error": document}, sys.stderr), err=True)
    elif isinstance(error, FeatureStoreError):
        _show_known(error)
    else:
        _labelled("Internal error", "red", f"{type(error).__name__}: {error}")
        click.echo("This is a defect of featurestore. Run the command again with --debug and report it.", err=True)
    return code


def _show_known(error: FeatureStoreError) -> None:
    if error.details.get("traceback"):
        click.echo(visible_lines(error.details["traceback"]), err=True)
    _labelled("Error", "red", error.message)
    cause = error.__cause__
    while isinstance(cause, FeatureStoreError):
        if cause.message not in error.message:
            click.echo(f"  because: {visible_lines(cause.message)}", err=True)
        cause = cause.__cause__
    if error.hint:
        _labelled("What to do", None, error.hint)
