"""URL scheme -> backend, loaded at its first use. The one place where implementations are wired."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import SettingsError, did_you_mean
from featurestore.types.times import Clock, system_clock

if TYPE_CHECKING:
    from typing import Protocol

    from featurestore_registry.interface import Registry

    from featurestore.engine.interface import Engine
    from featurestore.offline.interface import OfflineStore
    from featurestore.online.interface import OnlineStore

    class Located(Protocol):
        """A store's settings: its URL and its options."""

        @property
        def url(self) -> str:
            """Where the store is."""

        @property
        def options(self) -> dict[str, Any]:
            """Everything besides the URL."""

    class Limits(Protocol):
        """An engine's settings."""

        @property
        def memory_limit(self) -> str | None:
            """As DuckDB reads it, for example ``4GB``."""

        @property
        def threads(self) -> int | None:
            """At least 1."""

        @property
        def temp_directory(self) -> str | None:
            """Where to spill."""


REGISTRY_SCHEMES = ("sqlite",)
OFFLINE_SCHEMES = ("", "file")
ONLINE_SCHEMES = ("lmdb", "redis", "rediss", "redis+cluster", "rediss+cluster")


def local_path(url: str, root: Path) -> Path:
    """Return the path of a ``scheme:///path`` URL or a bare path: relative to ``root``, absolute with four slashes."""
    _, separator, rest = url.partition("://")
    path = rest.removeprefix("/") if separator else url
    if not path:
        raise SettingsError(f"{url!r} names no path.", hint="Write it as scheme:///folder/name.")
    return Path(root, path).resolve()


_MISREAD = re.compile(r"%[0-9A-Fa-f]{2}|[\0-\x1f\x7f\[\]^|\\\udc80-\udcff]")
"""Characters in a path that delta-rs misreads, decodes into another folder's name, or does not accept."""


def check_offline_folder(folder: Path) -> None:
    """Raise SettingsError for a folder that delta-rs would not find, or mistake for another."""
    found = _MISREAD.search(str(folder))
    if found is not None and _is_locale_at_fault(folder):
        raise SettingsError(
            f"offline_store: the name of {str(folder)!a} is UTF-8, which Python does not read in this locale "
            f"({sys.getfilesystemencoding()}).",
            hint="Set LC_ALL=C.UTF-8 or another UTF-8 locale, or PYTHONUTF8=1, and run the same command again.",
            key="offline_store",
        )
    if found is not None:
        raise SettingsError(
            f"offline_store: Delta tables cannot be in {str(folder)!a}: their library misreads {found[0]!a}.",
            hint="Rename the folder, or set `offline_store` to one without %XX, [ ] ^ | \\ and control characters.",
            key="offline_store",
        )


def _is_locale_at_fault(folder: Path) -> bool:
    """Tell whether a name was not decoded although it is UTF-8."""
    try:
        return not os.fsencode(folder).decode().isascii() and sys.getfilesystemencoding() != "utf-8"
    except UnicodeError:
        return False


def check_stores(root: Path, *, registry: Located, offline_store: Located, online_store: Located) -> dict[str, Path]:
    """Return by setting where stores lie on this machine: the registry's file, the others' folders.

    Opens and loads nothing. Raises SettingsError for a scheme that is not built, a wrong path or a wrong option.
    """
    _check_registry(registry)
    _check_offline(offline_store)
    places = {"registry": local_path(registry.url, root), "offline_store": local_path(offline_store.url, root)}
    check_offline_folder(places["offline_store"])
    scheme, _ = _check_online(online_store)
    return {**places, "online_store": local_path(online_store.url, root)} if scheme == "lmdb" else places


def _check_registry(located: Located) -> None:
    _scheme("registry", located.url, REGISTRY_SCHEMES)
    _options("registry", located.options, ())
    _no_query("registry", located.url)
    local_path(located.url, Path())


def _check_offline(located: Located) -> None:
    _scheme("offline_store", located.url, OFFLINE_SCHEMES)
    _options("offline_store", located.options, ())
    local_path(located.url, Path())


def _check_online(located: Located) -> tuple[str, dict[str, int]]:
    scheme = _scheme("online_store", located.url, ONLINE_SCHEMES)
    if scheme == "lmdb":
        _options("online_store", located.options, ())
        _no_query("online_store", located.url)
        local_path(located.url, Path())
        return scheme, {}
    _options("online_store", located.options, ("read_timeout_ms", "write_timeout_ms"))
    return scheme, {name: _milliseconds(name, value) for name, value in located.options.items()}


def open_registry(located: Located, root: Path, *, create: bool = True) -> Registry:
    """Open the registry; raises SettingsError for a scheme that is not built or an unknown option."""
    _check_registry(located)
    from featurestore_registry.sql import open_registry as open_sql

    return open_sql(f"sqlite:///{local_path(located.url, root)}", create=create)


def open_offline(located: Located, root: Path, *, clock: Clock = system_clock) -> OfflineStore:
    """Open the offline store; raises SettingsError for a scheme that is not built or an unknown option."""
    _check_offline(located)
    from featurestore.offline.local.store import DeltaStore

    return DeltaStore(local_path(located.url, root), clock=clock)


def open_online(located: Located, root: Path, *, clock: Clock = system_clock) -> OnlineStore:
    """Open the online store; raises SettingsError for a scheme that is not built or an unknown option."""
    scheme, timeouts = _check_online(located)
    if scheme == "lmdb":
        from featurestore.online.lmdb.store import LmdbStore

        return LmdbStore(local_path(located.url, root), clock=clock)
    if scheme.endswith("+cluster"):
        from featurestore.online.redis.cluster.store import RedisClusterStore

        return RedisClusterStore(located.url, **timeouts, clock=clock)
    from featurestore.online.redis.store import RedisStore

    return RedisStore(located.url, **timeouts, clock=clock)


def open_engine(limits: Limits, root: Path) -> Engine:
    """Open the engine."""
    from featurestore.engine.duck.engine import open_engine as open_duckdb
    from featurestore.engine.duck.session import EngineSettings

    return open_duckdb(root, EngineSettings(limits.memory_limit, limits.threads, limits.temp_directory))


def _milliseconds(name: str, value: Any) -> int:
    try:
        milliseconds = 0 if isinstance(value, bool) else int(value)  # environment variables are texts
    except (TypeError, ValueError):
        milliseconds = 0
    if milliseconds <= 0:
        raise SettingsError(f"online_store: {name}: {value!r} is not a positive number of milliseconds.")
    return milliseconds


def _scheme(setting: str, url: str, built: tuple[str, ...]) -> str:
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in built:
        known = ", ".join(f"{name}://" if name else "a folder" for name in built)
        # The whole URL may hold a password.
        what = f"the scheme {scheme!r} is not built" if scheme else "it starts with no scheme"
        raise SettingsError(f"{setting}: {what}.", hint=f"Built are: {known}.", key=setting)
    return scheme


def _no_query(setting: str, url: str) -> None:
    """Refuse what would be taken for a part of a file's name. Names nothing of it: it may be a password."""
    if mark := next((mark for mark in "?#" if mark in url), None):
        scheme = url.partition("://")[0]
        raise SettingsError(
            f"{setting}: a {scheme} URL takes no options, and {mark!r} would begin some.",
            hint=f"Write it as {scheme}:///folder/name, and rename a folder whose own name holds {mark!r}.",
            key=setting,
        )


def _options(setting: str, options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in options:
        if name not in known:
            raise SettingsError(
                f"{setting}: {name!r} is not an option here.", hint=did_you_mean(name, known) or "There are none."
            )
