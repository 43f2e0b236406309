"""fs help."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("names", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show help of a COMMAND, as its --help does: fs help materialize, fs help token create."""
    shown = ctx.find_root()
    for name in names:
        if not isinstance(shown.command, click.Group):
            raise click.UsageError(f"{shown.command_path} has no commands of its own, so there is no {name!r}.", shown)
        _, found, _ = shown.command.resolve_command(shown, [name])
        assert found is not None  # what is not there was refused
        shown = click.Context(found, info_name=name, parent=shown)
    click.echo(shown.get_help())
