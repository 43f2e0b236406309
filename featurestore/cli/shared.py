"""The options that commands share. They go before or after the command; those after it win."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = {
    "repo": click.option("--repo", type=click.Path(path_type=Path), help="The feature repo (default: here)."),
    "as_json": click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    "debug": click.option("--debug", is_flag=True, help="Show tracebacks and debug logs."),
}


def shared_options(*names: str) -> Callable[[F], F]:
    """Give a command or group these options, by default all; `given` returns their values."""

    def decorate(function: F) -> F:
        for name in reversed(names or tuple(_OPTIONS)):
            function = _OPTIONS[name](function)
        return function

    return decorate


def given(name: str) -> Any:
    """Return the value of a shared option: as given to the running command, or to a group before it."""
    context: click.Context | None = click.get_current_context()
    while context is not None and not context.params.get(name):
        context = context.parent
    return None if context is None else context.params[name]


def check_shared(group: click.Context, command: click.Command) -> None:
    """Refuse a shared option before a command that does not have it."""
    known = {parameter.name for parameter in command.params}
    for parameter in group.command.params:
        if group.params.get(parameter.name or "") and parameter.name not in known:
            group.fail(f"fs {command.name} has no option {parameter.opts[0]}.")
