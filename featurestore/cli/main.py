"""The command ``fs``. Commands load when they run, so that ``fs --help`` is instant."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from typing import Any

import click

from featurestore.cli.exits import EXIT_FAILED, EXIT_USAGE
from featurestore.cli.shared import check_shared, shared_options
from featurestore.cli.streams import is_output_lost, write_anything

COMMANDS = {
    "init": "Make a small feature repo that works as it is.",
    "plan": "Show what an apply would change.",
    "apply": "Register the repo's definitions.",
    "consumer": "Say who reads which services.",
    "approve": "Approve an apply as a second person.",
    "policy": "Say what editors may apply.",
    "materialize": "Bring rows from the sources into the stores.",
    "accept": "Commit rows of a blocked run all the same.",
    "quarantine": "List, release and drop rows that are set aside.",
    "training-set": "Build a point-in-time correct training set.",
    "training-sets": "List saved training sets, delete one.",
    "online": "Read features from the online store.",
    "push": "Push rows into the stores as they happen.",
    "peek": "Show the newest rows of a feature view.",
    "profile": "Show what columns hold, drawn.",
    "serve": "Serve features over HTTP.",
    "served": "Show what servers kept of their answers.",
    "parity": "Compare what was served with what should have been.",
    "monitor": "Compare features with their baseline.",
    "performance": "Compare what models predicted with what became known.",
    "token": "Create, list and revoke tokens of servers.",
    "catalog": "Show the catalog in a browser.",
    "list": "List what is registered.",
    "show": "Show one definition.",
    "lineage": "Show where features come from, and who uses them.",
    "status": "Show freshness, watermarks, rows and runs.",
    "log": "Show what was applied and materialized.",
    "diff": "Show what differs between revisions.",
    "rollback": "Bring back older definitions.",
    "promote": "Bring definitions from one project to another.",
    "optimize": "Compact offline tables into large files.",
    "verify": "Check every stored file and record.",
    "repair": "Settle what does not belong together.",
    "login": "Keep a token for the registry.",
    "logout": "Forget the registry's token.",
    "audit": "Show who changed what.",
    "registry": "Serve a registry to a team, upgrade it.",
    "gc": "Remove what the registry gave up.",
    "teardown": "Delete a project with all its data.",
    "doctor": "Check settings, sources, stores and clock.",
    "help": "Show help of a command.",
}
"""Every command and its one-line help, in the order of a first day."""
_FINISHED_BY_AGAIN = frozenset(
    {"apply", "rollback", "promote", "materialize", "training-set", "optimize", "repair", "gc", "--allow-destroy"}
)
"""What goes on where it was stopped: a login, a question or a teardown that only shows do not."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"featurestore.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from featurestore.errors import did_you_mean

            ctx.fail(f"There is no command {args[0]!r}. {did_you_mean(args[0], COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            check_shared(ctx, command)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import featurestore

        click.echo(f"featurestore {featurestore.__version__}")
        ctx.exit()


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Version.")
@shared_options()
def fs(**_: Any) -> None:
    """A feature store: correct training sets, fast online features.

    Exit codes: 0 done, 1 failed, 2 usage, 3 changes pending (fs plan --check), 4 the registry changed meanwhile, 5 a
    second person has to approve.
    """


def main(args: list[str] | None = None) -> Any:
    """Run ``fs`` and exit with its code; a user's mistake is never a traceback."""
    given = sys.argv[1:] if args is None else args
    if args is None:  # a process of its own: a last search for garbage would be a fifth of a short command's time
        atexit.register(gc.freeze)
    _open_closed_streams()
    write_anything()
    try:
        code = fs.main(given, prog_name="fs", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error, click.Abort) and not isinstance(error.__cause__, KeyboardInterrupt):  # a "no"
            click.echo("Stopped; nothing more was changed.", err=True)
            sys.exit(EXIT_FAILED)
        is_begun = any(each in _FINISHED_BY_AGAIN for each in given)
        again = "running the same command again finishes the work" if is_begun else "nothing more was changed"
        click.echo(f"Stopped; {again}.", err=True)
        sys.exit(130)
    except BrokenPipeError as error:
        is_output_lost(error)  # the reader of the pipe has gone: nobody would see a message
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if isinstance(error, OSError) and is_output_lost(error):
            click.echo(f"Error: standard output cannot be written: {error.strerror}.", err=True)
            click.echo("What to do: Send it elsewhere. What the command did is done.", err=True)
            sys.exit(EXIT_FAILED)
        from featurestore.cli.output import show_error

        sys.exit(show_error(error, as_json="--json" in given, debug="--debug" in given))
    sys.exit(code if isinstance(code, int) else 0)


def _open_closed_streams() -> None:
    """Give closed standard streams (``>&-``) a place to go: a store's file must not get the number of one."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))
