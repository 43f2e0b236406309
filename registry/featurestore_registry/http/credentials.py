"""Tokens of registries that a person logged in to: one file of the user's own, by the registry's URL."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from featurestore_registry.errors import RegistryError

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def credentials_path() -> Path:
    """Return the file's path: below XDG_CONFIG_HOME, or ``~/.config``."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "featurestore" / "credentials.json"


def stored_token(url: str) -> str | None:
    """Return the token for a registry; None where nobody logged in.

    Raises RegistryError for a file that is damaged, or that others may read.
    """
    return _read().get(_key(url))


def store_token(url: str, token: str) -> Path:
    """Keep the token of a registry, and return the file's path; raises as `stored_token`."""
    return _write({**_read(), _key(url): token})


def forget_token(url: str) -> bool:
    """Forget the token of a registry; return whether there was one. Raises as `stored_token`."""
    known = _read()
    if _key(url) not in known:
        return False
    _write({name: token for name, token in known.items() if name != _key(url)})
    return True


def _key(url: str) -> str:
    return url.rstrip("/")


def _read() -> dict[str, str]:
    path = credentials_path()
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise RegistryError(
                f"Other users may read the tokens in {path}.",
                hint=f"Close it: `chmod 600 {path}`, and revoke what others may have seen.",
            )
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"The tokens in {path} cannot be read: {error}.", hint="Remove it and log in again."
        ) from None
    if not isinstance(found, dict) or not all(isinstance(token, str) for token in found.values()):
        raise RegistryError(f"{path} holds something else than tokens.", hint="Remove it and log in again.")
    return {str(name): token for name, token in found.items()}


def _write(tokens: dict[str, str]) -> Path:
    path = credentials_path()
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.touch(mode=FILE_MODE)
        beside.write_text(json.dumps(tokens, indent=2), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise RegistryError(f"The tokens cannot be written to {path}: {error.strerror}.") from None
    return path
