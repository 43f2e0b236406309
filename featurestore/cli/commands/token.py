"""fs token."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click
from featurestore_registry.auth import (
    Role,
    Session,
    Token,
    create_token,
    end_sessions,
    given_token,
    revoke_token,
    sessions,
    tokens,
)
from featurestore_registry.errors import RegistryUnavailableError

from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import shared_options
from featurestore.definitions.base import check_object_name
from featurestore.errors import AuthError, FeatureStoreError, NotFoundError, did_you_mean
from featurestore.project.settings import read_duration
from featurestore.store import FeatureStore
from featurestore.types.times import MAX_INSTANT, MICROSECOND, to_rfc3339


@click.group("token")
@shared_options()
def command(**_: Any) -> None:
    """Create, list and revoke the tokens that servers ask for.

    The registry keeps a token's hash only. Running servers notice a change when they next read the registry
    (server.refresh, 10 s by default); a token that expires stops working at once.
    """


def _project(ctx: click.Context, _: click.Parameter, name: str | None) -> str | None:
    try:
        return None if name is None else check_object_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _duration(ctx: click.Context, _: click.Parameter, text: str | None) -> timedelta | None:
    try:
        span = None if text is None else read_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}.") from None
    if span is not None and not span:
        raise click.BadParameter(f"{text!r} is no time at all: the token would expire before you see it.")
    return span


def _check_known(store: FeatureStore, project: str, so: str, hint: str = "") -> None:
    """Raise NotFoundError for a project that nothing was ever applied to."""
    known = {*store.workspace.registry.definitions.projects(), store.project}
    if project not in known:
        raise NotFoundError(
            f"Nothing is applied to a project {project!r}, so {so}.",
            hint=did_you_mean(project, known) + hint,
            project=project,
        )


def tokens_of(store: FeatureStore, project: str | None) -> list[Token]:
    """Return the tokens that are good for a project; its own may be older than what is applied to it."""
    name = project or store.project
    found = list(tokens(store.workspace.ledger, name))
    if all(token.project is None for token in found):
        _check_known(store, name, "it has no tokens")
    return found


_LEAST_ID = 4
"""A shorter beginning of an id names nothing."""
_of_project = click.option("--project", callback=_project, help="Another project than the repo's.")


def _end_us(now_us: int, span: timedelta | None) -> int | None:
    end_us = None if span is None else now_us + span // MICROSECOND
    if end_us is not None and end_us > MAX_INSTANT:
        raise click.UsageError("--expires lies beyond the year 9999: leave it out for a token that never expires.")
    return end_us


@command.command("create")
@click.option("--role", type=click.Choice([str(role) for role in Role]), required=True, help="What it may do.")
@_of_project
@click.option("--all-projects", is_flag=True, help="Good for every project.")
@click.option(
    "--server",
    "is_server",
    is_flag=True,
    help="For a feature server of a registry behind HTTP: it may read the hashes of tokens, to check them itself.",
)
@click.option(
    "--from-variable",
    "variable",
    metavar="NAME",
    help="Take the token's text from this environment variable; one that the registry has already is left as it is.",
)
@click.option("--name", default="", help="What people call it, for example the service that uses it.")
@click.option("--expires", metavar="SPAN", callback=_duration, help="Ends after so long, for example 90d or 12h.")
@repo_command
def create(
    store: FeatureStore,
    output: Output,
    role: str,
    project: str | None,
    all_projects: bool,
    is_server: bool,
    variable: str | None,
    name: str,
    expires: timedelta | None,
) -> None:
    """Make a token and show it, this once.

    Roles, each with those before it: viewer (registry), reader (features), operator (push, runs), editor (apply),
    admin (tokens).
    """
    if project is not None and all_projects:
        raise click.UsageError("Give either --project or --all-projects.")
    now_us = store.workspace.clock()
    expires_at_us = _end_us(now_us, expires)
    if project is not None:
        _check_known(store, project, "no token is made for it", " For a new project run `fs apply` in its repo first.")
    of = None if all_projects else project or store.project
    given = None if variable is None else os.environ.get(variable, "")
    if given and (known := given_token(store.workspace.ledger, of, given)):
        told = f"{known.id} is there already: {_role_of(known)} of {_good_for(known)}."
        if (known.role, known.project, known.is_server) != (Role.parse(role), of, is_server):
            raise FeatureStoreError(f"The token {told}", hint="Give another text, or the same role and project.")
        output.emit(_document(known, now_us))
        output.say(f"Token {told}")
        return
    text, token = create_token(
        store.workspace.ledger,
        of,
        Role.parse(role),
        expires_at_us=expires_at_us,
        now_us=now_us,
        name=name,
        is_server=is_server,
        text=given,
    )
    output.emit({**({"token": text} if given is None else {}), **_document(token, now_us)})
    output.say(f"Token {token.id}: {_role_of(token)} of {_good_for(token)}, {_end_of(token, now_us)}.")
    if given is not None:
        output.say(f"Its text is the one in {variable}.")
        return
    output.say("It is shown now and never again:")
    output.say("")
    output.say(text, soft_wrap=True)


@command.command("list")
@_of_project
@repo_command
def list_(store: FeatureStore, output: Output, project: str | None) -> None:
    """List the tokens that are good for the project, those of all projects among them; never their texts.

    And who is logged in, with the address from which, where people log in.
    """
    now_us = store.workspace.clock()
    found: list[Token | Session] = [*tokens_of(store, project), *logins_of(store, now_us)]
    output.emit([_document(each, now_us) for each in found])
    rows = [(each.id, each.name, _role_of(each), _good_for(each), _end_of(each, now_us)) for each in found]
    if rows:
        output.table(("id", "name", "role", "good for", "end"), rows)
    else:
        output.say("There are no tokens: a server on loopback is open to all who reach it, unless it has seen one.")


@command.command("revoke")
@click.argument("id", required=False)
@click.option("--person", metavar="NAME", help="End all logins of a person.")
@_of_project
@repo_command
def revoke(store: FeatureStore, output: Output, id: str | None, person: str | None, project: str | None) -> None:
    """Revoke the token ID, or what begins so, for good, or end the login ID, or those of a person.

    Somebody who may still log in at the identity provider can do it again: take the role away there first.
    """
    if (id is None) == (person is None):
        raise click.UsageError("Give either an ID or --person.")
    logins = [each.id for each in logins_of(store) if id == each.id or (person and person in (each.name, each.person))]
    if logins or id is None:
        ended = end_sessions(store.workspace.ledger, lambda each: each.id in logins)
        if not ended:
            raise NotFoundError(f"Nobody of the name {person!r} is logged in.", hint="See `fs token list`.")
        output.emit({"ended": [each.id for each in ended]})
        output.say(f"{ended[0].name} is logged out (logins ended: {len(ended)}).")
        return
    ledger, named = store.workspace.ledger, project or store.project
    found = {token.id: token for token in tokens_of(store, project)}
    begun = [each for each in found if len(id) >= _LEAST_ID and each.startswith(id)]
    key = begun[0] if len(begun) == 1 else id
    revoke_token(ledger, found[key].project if key in found else named, key, now_us=store.workspace.clock())
    output.emit({"id": key, "revoked": True, "left": len(found) - 1})
    output.say(f"Token {key} is revoked.")
    if len(found) == 1:
        output.say("It was the last one. A server that has seen it stays closed, until `fs serve --open`.")


def logins_of(store: FeatureStore, now_us: int = 0) -> list[Session]:
    """Return who is logged in after an instant; nobody for who administers one project alone.

    Nor from a server of an earlier version, which answers 404.
    """
    try:
        return [each for each in sessions(store.workspace.ledger) if each.expires_at_us > now_us]
    except (AuthError, RegistryUnavailableError):
        return []


def _role_of(token: Token | Session) -> str:
    if isinstance(token, Session):
        return ", ".join(sorted(set(token.roles.values())))
    return f"{token.role}, server" if token.is_server else str(token.role)


def _good_for(token: Token | Session) -> str:
    if isinstance(token, Session):
        return f"{token.by} from {token.address}"
    return "all projects" if token.project is None else f"project {token.project}"


def _end_of(token: Token | Session, now_us: int) -> str:
    if token.expires_at_us is None:
        return "never expires"
    return f"{'expired' if token.expires_at_us <= now_us else 'expires'} {to_rfc3339(token.expires_at_us)}"


def _document(token: Token | Session, now_us: int) -> dict[str, Any]:
    if isinstance(token, Session):
        document = {name: value for name, value in asdict(token).items() if name != "hash" and not name.endswith("_us")}
        times = {"made_at": to_rfc3339(token.made_at_us), "expires_at": to_rfc3339(token.expires_at_us)}
        return {**document, **times, "expired": token.expires_at_us <= now_us}
    end = token.expires_at_us
    return {
        "id": token.id,
        "name": token.name,
        "role": str(token.role),
        "server": token.is_server,
        "project": token.project,
        "expires_at": None if end is None else to_rfc3339(end),
        "expired": end is not None and end <= now_us,
    }
