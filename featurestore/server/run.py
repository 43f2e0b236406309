"""Running the server: the socket, the workers, the way down."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

import featurestore
from featurestore.errors import RegistryError, SettingsError
from featurestore.plan.judging import judge
from featurestore.project.settings import RegistryServerSettings
from featurestore.server.app import create_app, open_workspace
from featurestore.server.http.gate import FeatureServer
from featurestore.server.http.protocol import DeadlineProtocol
from featurestore.server.watch import logs
from featurestore.server.watch.metrics import DIRECTORY_VARIABLE

if TYPE_CHECKING:
    from featurestore_registry.http.oidc import IdentityProvider

logger = logging.getLogger("featurestore.server")

TOKEN_VARIABLE = "FS_SERVER_TOKEN"  # noqa: S105 - its name, not its value
MAX_CONNECTIONS = 900
"""At most so many connections per worker; the usual limit of open files is 1,024."""

GRACE_SECONDS = 15
KEEP_ALIVE_SECONDS = 75
"""Longer than the usual minute of load balancers, so that they close idle connections and not the server."""

WORKER_ANSWER_SECONDS = 30
"""Replace a worker that has not answered its parent for so long; loading all modules can take seconds."""

BACKLOG = 2048

SWITCH_SECONDS = 0.0005
"""How long another thread may run Python before a request gets its turn. With Python's own 5 ms a background refresh
of the definitions delays every request of that moment several times."""


def serve(
    root: Path,
    *,
    host: str | None,
    port: int | None,
    workers: int | None,
    reopen: bool,
    debug: bool,
    log_format: logs.Format,
) -> None:
    """Serve a feature repo until SIGTERM or SIGINT; requests under way are finished first.

    Arguments that are None come from the settings; port 0 takes a free one. Prints the URL once the server accepts
    connections; logs go to standard error. Reads the token from ``FS_SERVER_TOKEN``; ``reopen`` forgets that servers of
    this repo were closed. Raises SettingsError when the port is taken or the address needs a token, and what
    `create_app` raises, before the server listens.
    """
    prepare = functools.partial(_prepare_process, log_format, debug)
    before = sys.getswitchinterval()
    prepare()
    try:
        with suppress(_Stopped), _stopping_by_signals() as check:
            workspace = open_workspace(root)
            workspace.open("online")  # reports a bad URL now, before anything listens
            settings = workspace.settings.server
            host = settings.host if host is None else host
            workers = settings.workers if workers is None else workers
            # With one worker this is the app; with several it finds errors before the workers start.
            app = create_app(root, token=os.environ.get(TOKEN_VARIABLE), host=host, reopen=reopen)
            if app.notice:
                logger.warning("%s", app.notice)
            with bind(host, settings.port if port is None else port) as listening:
                if workers == 1:
                    _settle()
                sys.stdout.write(f"Serving features at {url_of(listening)}\n")
                sys.stdout.flush()
                check()
                if workers == 1:
                    uvicorn.Server(server_config(app)).run(sockets=[listening])
                else:
                    _serve_by_workers(functools.partial(_worker_app, root, host, prepare), workers, listening)
    finally:
        sys.setswitchinterval(before)


def serve_registry(root: Path, *, host: str, port: int, debug: bool, log_format: logs.Format) -> None:
    """Serve the registry of a repo's settings until SIGTERM or SIGINT; as `serve`.

    Raises SettingsError for a registry that is behind HTTP itself and for a port that is taken, and what opening the
    registry raises.
    """
    from featurestore_registry.http.access import Access
    from featurestore_registry.http.server import create_app as create_registry

    _prepare_process(log_format, debug)
    with suppress(_Stopped), _stopping_by_signals() as check, closing(open_workspace(root)) as workspace:
        if workspace.settings.registry.url.startswith(("http:", "https:")):
            raise SettingsError(
                "registry: a registry behind HTTP is served where its database is.",
                hint="Run it where `registry` names a file or a database.",
                key="registry",
            )
        registry, settings = workspace.registry, workspace.settings.registry_server
        provider = _identity_provider(settings)
        with bind(host, port) as listening:
            access = Access(
                registry,
                provider=provider,
                public_url=settings.public_url or url_of(listening),
                session_seconds=settings.session.total_seconds(),
                clock=workspace.clock,
            )
            access.refresh()
            named = {role.partition(":")[2] for role in settings.oidc_roles.values()} - {""}
            for unknown in sorted(named - {*registry.definitions.projects()}):
                logger.warning("registry_server.oidc_roles names project %r, which has never been applied", unknown)
            if provider is None and not access.has_tokens:
                logger.warning(
                    "nobody can enter: no token is known. Make one with `fs token create --role admin --all-projects`"
                )
            if provider is not None and not access.public_url:
                logger.warning(
                    "nobody logs in by browser: set registry_server.public_url to this server's https:// URL"
                )
            app = create_registry(registry, access, judge=judge, version=featurestore.__version__)
            sys.stdout.write(f"Serving the registry at {url_of(listening)}\n")
            sys.stdout.flush()
            check()
            proxies = workspace.settings.registry_server.trusted_proxies
            uvicorn.Server(server_config(app, trusted_proxies=proxies)).run(sockets=[listening])


def serve_catalog(root: Path, *, port: int, opens: bool, debug: bool) -> None:
    """Show the catalog of a repo's registry on loopback until SIGTERM or SIGINT, in a browser if one ``opens``.

    Nobody shows a token: who reaches the port sees what the settings' registry lets this process read. Raises
    SettingsError for a port that is taken, and what opening the registry raises.
    """
    from featurestore_registry.catalog.addresses import project_address
    from featurestore_registry.catalog.app import Catalog

    _prepare_process("text", debug)
    with suppress(_Stopped), _stopping_by_signals() as check, closing(open_workspace(root)) as workspace:
        registry = workspace.registry
        registry.definitions.head(workspace.project)  # says now why it cannot be read
        with bind("127.0.0.1", port) as listening:
            bound = listening.getsockname()[1]
            app = Catalog(registry, is_local=True, hosts=[f"127.0.0.1:{bound}", f"localhost:{bound}"])
            address = f"{url_of(listening)}{project_address(workspace.project)}"
            sys.stdout.write(f"The catalog is at {address} until you press Ctrl-C.\n")
            sys.stdout.flush()
            if opens:
                webbrowser.open(address)
            check()
            uvicorn.Server(server_config(app)).run(sockets=[listening])


def _identity_provider(settings: RegistryServerSettings) -> IdentityProvider | None:
    """Return the identity provider of the settings; raises SettingsError for one that is not described whole."""
    if settings.oidc_issuer is None:
        return None
    if not settings.oidc_audience or not settings.oidc_roles:
        raise SettingsError(
            "registry_server: oidc_issuer needs oidc_audience and oidc_roles.",
            hint="Name this registry's client id at the provider, and the roles that its groups have here.",
            key="registry_server",
        )
    try:
        import oauthlib  # noqa: F401 - logins need it
        from featurestore_registry.http.oidc import IdentityProvider, Issuer
    except ImportError as error:
        raise SettingsError(
            f"registry_server: oidc_issuer needs the package {error.name}.",
            hint="Run `pip install '.[login]'` in a checkout.",
            key="registry_server",
        ) from None

    issuer = Issuer(
        settings.oidc_issuer,
        settings.oidc_audience,
        settings.oidc_roles,
        settings.oidc_claim,
        settings.oidc_client_secret.get_secret_value(),
        settings.oidc_cli_client_id,
        tuple(settings.oidc_scopes),
    )
    try:
        return IdentityProvider(issuer)
    except RegistryError as error:
        raise SettingsError(
            f"registry_server, oidc_issuer and oidc_roles: {error.message}", hint=error.hint, key="registry_server"
        ) from None


def _prepare_process(log_format: logs.Format, debug: bool) -> None:
    logs.configure(log_format, debug=debug)
    sys.setswitchinterval(SWITCH_SECONDS)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; connections wait in it until a worker accepts them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # checked here, because create_server leaves its socket open if this fails
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise _not_listening(host, port, error) from None
    listening.set_inheritable(True)
    return listening


def _not_listening(host: str, port: int, error: Exception) -> SettingsError:
    number, reason = None, "This is not the name of a host"
    if isinstance(error, OSError):
        number, reason = error.errno, (error.strerror or str(error)).partition(" (while ")[0]
    if number == errno.EADDRINUSE:
        hint = "Choose another with --port, or --port 0 for a free one."
    elif number in (errno.EACCES, errno.EPERM):
        hint = "Choose a port from 1024 on with --port; lower ones need special rights."
    else:
        hint = "Name an address of this machine with --host: 127.0.0.1 for itself only, 0.0.0.0 for all networks."
    return SettingsError(f"The server cannot listen on {host}:{port}: {reason}.", hint=hint, host=host, port=port)


def url_of(listening: socket.socket) -> str:
    """Return the URL under which a listening socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Stopped(BaseException):
    """SIGTERM or SIGINT arrived when nothing is left to finish."""


@contextmanager
def _stopping_by_signals() -> Iterator[Callable[[], None]]:
    """Turn both signals into a clean end: before uvicorn takes them over, and when it raises them again afterwards.

    The function that it yields raises once a signal has arrived: Python ignores exceptions raised while it collects
    an object.
    """
    arrived: list[int] = []

    def stop(number: int, frame: object) -> None:
        arrived.append(number)
        raise _Stopped

    def check() -> None:
        if arrived:
            raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve_by_workers(factory: Callable[[], FeatureServer], workers: int, listening: socket.socket) -> None:
    # The workers are new processes and not forks, so that stores open in the process that uses them.
    directory = tempfile.mkdtemp(prefix="featurestore-metrics-")
    os.environ[DIRECTORY_VARIABLE] = directory
    try:
        Multiprocess(server_config(factory, workers=workers, is_factory=True), sockets=[listening]).run()
    finally:
        del os.environ[DIRECTORY_VARIABLE]
        shutil.rmtree(directory, ignore_errors=True)


def _worker_app(root: Path, host: str, prepare: Callable[[], None]) -> FeatureServer:
    prepare()
    app = create_app(root, token=os.environ.get(TOKEN_VARIABLE), host=host)
    _settle()
    return app


def _settle() -> None:
    """Hide the start's objects from the garbage collector: they stay, and each pass over them stalls requests."""
    gc.collect()
    gc.freeze()


def server_config(
    app: ASGIApp | Callable[[], ASGIApp],
    *,
    workers: int = 1,
    is_factory: bool = False,
    trusted_proxies: Sequence[str] = (),
) -> uvicorn.Config:
    """Return uvicorn's configuration for an app, or for a function that makes one in each worker."""
    return uvicorn.Config(
        app,
        factory=is_factory,
        workers=workers,
        http=DeadlineProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=[*trusted_proxies],
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=WORKER_ANSWER_SECONDS,
        backlog=BACKLOG,
    )
