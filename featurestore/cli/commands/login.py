"""fs login."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import click
from featurestore_registry.auth.sessions import PREFIX
from featurestore_registry.errors import RegistryUnavailableError
from featurestore_registry.http.credentials import forget_token, store_token, stored_token

from featurestore.backends import open_registry
from featurestore.cli.output import Output, repo_command
from featurestore.errors import AuthError, SettingsError
from featurestore.project.settings import StoreSettings
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from featurestore_registry.http.client import HttpRegistry


def registry_of(store: FeatureStore, url: str | None) -> StoreSettings:
    """Return the registry at a URL, by default the repo's; raises SettingsError where it is not behind HTTP."""
    registry: StoreSettings = StoreSettings.model_validate({"url": url}) if url else store.settings.registry
    if not registry.url.startswith(("https://", "http://")):
        hint = "Set `registry` to the URL of a registry's server first."
        if url:
            hint = f"Write the whole URL of a registry's server: https://{url.rpartition('//')[2]}"
        raise SettingsError("registry: this one is not behind HTTP, and asks for no token.", hint=hint, key="registry")
    return registry


def _opened(store: FeatureStore, registry: StoreSettings, token: str | None = None) -> HttpRegistry:
    return cast("HttpRegistry", open_registry(registry, store.root, token=token))  # `registry_of` saw to that


@click.command("login")
@click.argument("registry_url", metavar="[URL]", required=False)
@click.option("--token", "is_pasted", is_flag=True, help="Paste a token, though people can log in by browser.")
@click.option("--no-browser", is_flag=True, help="Print the address to open, and open nothing.")
@repo_command
def command(store: FeatureStore, output: Output, registry_url: str | None, is_pasted: bool, no_browser: bool) -> None:
    """Log in to the registry at URL, by default the repo's, and keep the token in a file that only you can read.

    Opens the page of the registry's identity provider in the browser. Where it has none, asks for a token, or reads it
    from standard input. FS_REGISTRY_TOKEN wins over what is kept.
    """
    registry = registry_of(store, registry_url)
    url, offer = str(registry.url), None
    if not is_pasted and (no_browser or sys.stdin.isatty()):
        with _opened(store, registry) as asked:
            offer = asked.login_offer()
    if offer is not None:
        session = _by_browser(store, registry, offer, opens=not no_browser)
        token, who = session["token"], f" as {session['name']} ({', '.join(session['roles'])})"
    else:
        token, who = _pasted(url), ""
    with _opened(store, registry, token) as opened:
        projects = opened.definitions.projects()
    path = store_token(url, token)
    output.emit({"registry": url, "projects": projects, "file": str(path)})
    output.say(f"Logged in to {url}{who}; the token is kept in {path}.")


def _pasted(url: str) -> str:
    if sys.stdin.isatty():
        token = str(click.prompt(f"Token for {url}", hide_input=True)).strip()
    else:
        token = sys.stdin.readline().strip()
    if not token:
        raise click.UsageError("The token is empty.")
    return token


def _by_browser(
    store: FeatureStore, registry: StoreSettings, offer: Mapping[str, Any], *, opens: bool
) -> Mapping[str, Any]:
    try:
        from featurestore.cli.browser import id_token
    except ImportError as error:
        raise SettingsError(
            f"A login by browser needs the package {error.name}.",
            hint="Run `pip install '.[login]'` in a checkout, or paste a token with --token.",
            key="registry",
        ) from None
    token, verifier = id_token(offer, str(registry.url), opens=opens)
    with _opened(store, registry, token) as asked:
        return asked.begin_session(verifier)


def log_out(store: FeatureStore, output: Output, registry_url: str | None) -> None:
    """End the session at the registry, and forget its token."""
    registry = registry_of(store, registry_url)
    url = str(registry.url)
    token = stored_token(url)
    is_ended = False
    if token is not None and token.startswith(PREFIX):
        try:
            with _opened(store, registry, token) as asked:
                asked.end_session()
            is_ended = True
        except AuthError:  # it has ended before
            is_ended = True
        except RegistryUnavailableError as error:
            output.note(f"{error.message} The session lives until its end, or `fs token revoke`.")
    is_gone = forget_token(url)
    output.emit({"registry": url, "forgotten": is_gone, "ended": is_ended})
    output.say(f"Logged out of {url}." if is_gone else f"Nobody was logged in to {url} here.")
    if token is not None and not token.startswith(PREFIX):
        output.say("The token itself stays valid until `fs token revoke`, or its end.")
