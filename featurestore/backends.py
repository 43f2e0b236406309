"""URL scheme -> backend, loaded at its first use. The one place where implementations are wired."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


REGISTRY_TOKEN = "FS_REGISTRY_TOKEN"  # noqa: S105 - its name, not its value
TOKEN_FROM = "FS_REGISTRY_TOKEN_FROM"  # noqa: S105 - its name, not its value
"""A token that reads the project that `fs promote` takes from, where the other one is for the target alone."""
PLAIN_HTTP = "FS_REGISTRY_PLAIN_HTTP"
"""Names the hosts, separated by commas, that are reached without TLS in a network of one's own."""


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


def check_stores(root: Path, **settings: Located) -> dict[str, Path]:
    """Return the paths of stores on this machine, by setting: the registry's file, the others' folders.

    Opens and loads nothing. Raises SettingsError for a scheme that is not built, a wrong path or a wrong option.
    """
    places = {}
    for setting, located in settings.items():
        backend, _ = _checked(setting, located)
        if backend.is_local:
            places[setting] = local_path(located.url, root)
        if setting == "offline_store":
            check_offline_folder(places[setting])
    return places


def open_registry(
    located: Located, root: Path, *, create: bool = True, clock: Clock = system_clock, token: str | None = None
) -> Registry:
    """Open the registry; raises SettingsError for a scheme that is not built or an unknown option.

    ``token`` is for one behind HTTP; by default the one in FS_REGISTRY_TOKEN, or else that of `fs login`.
    """
    backend, _ = _checked("registry", located)
    more = {"token": token} if backend.open is _open_http else {}
    registry: Registry = backend.open(located.url, root, clock, create=create, **more)
    return registry


def upgrade_registry(located: Located, root: Path) -> tuple[str | None, str]:
    """Bring the registry to this version's schema; return the one that it had, None for none, and the one it has."""
    from featurestore_registry.sql import upgrade_registry as upgrade

    backend, _ = _checked("registry", located)
    if backend.open is _open_http:
        raise SettingsError(
            "registry: a registry behind HTTP is upgraded where its database is.",
            hint="Run `fs registry upgrade` where `registry` names the database, then restart its server.",
            key="registry",
        )
    if backend.is_local:
        return upgrade(f"sqlite:///{local_path(located.url, root)}")
    return upgrade(located.url, credentials=_credentials(located.url))


def copy_registry(located: Located, target: str, root: Path) -> dict[str, int]:
    """Copy the registry to an empty database or a new file, and return how many rows of each table there are."""
    from featurestore_registry.sql import copy_registry as copy

    from featurestore.online.url import StoreUrl

    backend, _ = _checked("registry", located)
    to = BACKENDS["registry"][_scheme("registry", target)]
    if _open_http in (backend.open, to.open):
        raise SettingsError(
            "registry: a registry behind HTTP is copied where its database is.",
            hint="Run `fs registry copy URL` where `registry` names a file or a database; URL is another one.",
            key="registry",
        )
    places = [(backend, located.url), (to, StoreUrl(target))]
    urls = [f"sqlite:///{local_path(url, root)}" if each.is_local else url for each, url in places]
    return copy(urls[0], urls[1], credentials=(_credentials(located.url), _credentials(target)))


def open_offline(located: Located, root: Path, *, clock: Clock = system_clock) -> OfflineStore:
    """Open the offline store; raises SettingsError for a scheme that is not built or an unknown option."""
    backend, _ = _checked("offline_store", located)
    store: OfflineStore = backend.open(located.url, root, clock)
    return store


def open_online(located: Located, root: Path, *, clock: Clock = system_clock) -> OnlineStore:
    """Open the online store; raises SettingsError for a scheme that is not built or an unknown option."""
    backend, options = _checked("online_store", located)
    store: OnlineStore = backend.open(located.url, root, clock, **options)
    return store


def _open_sqlite(url: str, root: Path, clock: Clock, *, create: bool) -> Registry:
    from featurestore_registry.sql import open_registry as open_sql

    return open_sql(f"sqlite:///{local_path(url, root)}", create=create, clock=clock)


def _open_postgres(url: str, root: Path, clock: Clock, *, create: bool) -> Registry:
    from featurestore_registry.sql import open_registry as open_sql

    return open_sql(url, create=create, clock=clock, credentials=_credentials(url))


def _credentials(url: str) -> Mapping[str, str]:
    from featurestore.online.url import StoreUrl

    return StoreUrl(url).credentials.options


def _open_http(url: str, root: Path, clock: Clock, *, create: bool, token: str | None) -> Registry:
    if _credentials(url):
        raise SettingsError(
            "registry: the URL holds a user or a token, which logs would show.",
            hint=f"Write the host alone, and put the token into {REGISTRY_TOKEN}.",
            key="registry",
        )
    try:
        from featurestore_registry.http.client import open_registry as open_http
        from featurestore_registry.http.credentials import stored_token
    except ImportError as error:
        raise SettingsError(
            f"registry: a registry behind {url.partition(':')[0]} needs the package {error.name}.",
            hint="Run `pip install '.[client]'` in a checkout.",
            key="registry",
        ) from None
    plain = frozenset(os.environ.get(PLAIN_HTTP, "").replace(",", " ").split())
    token = token or os.environ.get(REGISTRY_TOKEN, "").strip() or stored_token(url)
    return open_http(url, token=token, plain=plain)


def _open_delta(url: str, root: Path, clock: Clock) -> OfflineStore:
    from featurestore.offline.local.store import DeltaStore

    return DeltaStore(local_path(url, root), clock=clock)


def _open_lmdb(url: str, root: Path, clock: Clock) -> OnlineStore:
    from featurestore.online.lmdb.store import LmdbStore

    return LmdbStore(local_path(url, root), clock=clock)


def _open_redis(url: str, root: Path, clock: Clock, **timeouts: int) -> OnlineStore:
    from featurestore.online.redis.store import RedisStore

    return RedisStore(url, **timeouts, clock=clock)


def _open_cluster(url: str, root: Path, clock: Clock, **timeouts: int) -> OnlineStore:
    from featurestore.online.redis.cluster.store import RedisClusterStore

    return RedisClusterStore(url, **timeouts, clock=clock)


@dataclass(frozen=True, slots=True)
class Backend:
    """The implementation behind a URL scheme."""

    open: Callable[..., Any]
    is_local: bool = True
    """Whether the URL is a path on this machine."""
    has_query: bool = False
    """Whether ``?`` and ``#`` may stand in the URL."""
    options: tuple[str, ...] = ()
    """Options besides the URL, in milliseconds."""


_DELTA = Backend(_open_delta, has_query=True)  # of a folder's name they are a part
_TIMEOUTS = ("read_timeout_ms", "write_timeout_ms")
_REDIS = Backend(_open_redis, is_local=False, has_query=True, options=_TIMEOUTS)
_CLUSTER = replace(_REDIS, open=_open_cluster)

BACKENDS: dict[str, dict[str, Backend]] = {
    "registry": {
        "sqlite": Backend(_open_sqlite),
        "postgresql": Backend(_open_postgres, is_local=False, has_query=True),
        "https": Backend(_open_http, is_local=False, has_query=True),
        "http": Backend(_open_http, is_local=False, has_query=True),
    },
    "offline_store": {"": _DELTA, "file": _DELTA},
    "online_store": {
        "lmdb": Backend(_open_lmdb),
        "redis": _REDIS,
        "rediss": _REDIS,
        "redis+cluster": _CLUSTER,
        "rediss+cluster": _CLUSTER,
    },
}
"""By setting and URL scheme, "" for a bare path."""


def _checked(setting: str, located: Located) -> tuple[Backend, dict[str, int]]:
    """Return a store's backend and its options; raises SettingsError."""
    backend = BACKENDS[setting][_scheme(setting, located.url)]
    for name in located.options:
        if name not in backend.options:
            hint = did_you_mean(name, backend.options) or "There are none."
            raise SettingsError(f"{setting}: {name!r} is not an option here.", hint=hint)
    if not backend.has_query:
        _check_no_query(setting, located.url)
    if backend.is_local:
        local_path(located.url, Path())
    return backend, {name: _milliseconds(name, value) for name, value in located.options.items()}


def open_engine(root: Path, **limits: Any) -> Engine:
    """Open the engine; ``limits`` are the fields of `EngineSettings`."""
    from featurestore.engine.duck.engine import open_engine as open_duckdb
    from featurestore.engine.duck.session import EngineSettings

    return open_duckdb(root, EngineSettings(**limits))


def _milliseconds(name: str, value: Any) -> int:
    try:
        milliseconds = 0 if isinstance(value, bool) else int(value)  # environment variables are texts
    except (TypeError, ValueError):
        milliseconds = 0
    if milliseconds <= 0:
        raise SettingsError(f"online_store: {name}: {value!r} is not a positive number of milliseconds.")
    return milliseconds


def _scheme(setting: str, url: str) -> str:
    built = BACKENDS[setting]
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in built:
        known = ", ".join(f"{name}://" if name else "a folder" for name in built)
        # The whole URL may hold a password.
        what = f"the scheme {scheme!r} is not built" if scheme else "it starts with no scheme"
        raise SettingsError(f"{setting}: {what}.", hint=f"Built are: {known}.", key=setting)
    return scheme


def _check_no_query(setting: str, url: str) -> None:
    """Refuse what would be taken for a part of a file's name. Names nothing of it: it may be a password."""
    if mark := next((mark for mark in "?#" if mark in url), None):
        scheme = url.partition("://")[0]
        raise SettingsError(
            f"{setting}: a {scheme} URL takes no options, and {mark!r} would begin some.",
            hint=f"Write it as {scheme}:///folder/name, and rename a folder whose own name holds {mark!r}.",
            key=setting,
        )
