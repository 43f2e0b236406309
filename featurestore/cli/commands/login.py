"""fs login."""

from __future__ import annotations

import sys

import click
from featurestore_registry.http.credentials import forget_token, store_token

from featurestore.backends import open_registry
from featurestore.cli.output import Output, repo_command
from featurestore.errors import SettingsError
from featurestore.project.settings import StoreSettings
from featurestore.store import FeatureStore


def url_of(store: FeatureStore) -> str:
    """Return the URL of the repo's registry; raises SettingsError where it is not behind HTTP."""
    registry: StoreSettings = store.settings.registry
    if not registry.url.startswith(("https://", "http://")):
        raise SettingsError(
            "registry: this one is not behind HTTP, and asks for no token.",
            hint="Set `registry` to the URL of a registry's server first.",
            key="registry",
        )
    return str(registry.url)


@click.command("login")
@repo_command
def command(store: FeatureStore, output: Output) -> None:
    """Keep a token for the repo's registry, in a file that only you can read.

    Asks for the token, or reads it from standard input. FS_REGISTRY_TOKEN wins over what is kept.
    """
    url = url_of(store)
    if sys.stdin.isatty():
        token = click.prompt(f"Token for {url}", hide_input=True).strip()
    else:
        token = sys.stdin.readline().strip()
    if not token:
        raise click.UsageError("The token is empty.")
    with open_registry(store.settings.registry, store.root, token=token) as registry:
        projects = registry.definitions.projects()
    path = store_token(url, token)
    output.emit({"registry": url, "projects": projects, "file": str(path)})
    output.say(f"Logged in to {url}; the token is kept in {path}.")


def log_out(store: FeatureStore, output: Output) -> None:
    """Forget the token of the repo's registry."""
    url = url_of(store)
    is_gone = forget_token(url)
    output.emit({"registry": url, "forgotten": is_gone})
    output.say(f"Logged out of {url}." if is_gone else f"Nobody was logged in to {url} here.")
    if is_gone:
        output.say("The token itself stays valid until `fs token revoke`, or its end.")
