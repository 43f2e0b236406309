"""A server that asked for tokens goes on asking: over restarts, lost memory and registries that know of none."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from featurestore_registry.auth import Role, Token, create_token, revoke_token
from featurestore_registry.interface import Ledger
from featurestore_registry.records import Change
from support.clock import ManualClock
from support.command_line import CommandLine
from support.serving import TOKEN, Project, ServerProcess, error_of, serving, serving_here, small_project, until

from featurestore.backends import open_registry
from featurestore.definitions import Entity
from featurestore.errors import FeatureStoreError, RegistryError, SettingsError
from featurestore.maintenance.doctor import Check, examine
from featurestore.project import access
from featurestore.project.settings import read_settings
from featurestore.registered import snapshot_file
from featurestore.registered.records import to_record
from featurestore.server.app import create_app
from featurestore.types import Int64
from featurestore.types.times import system_clock

BODY = {"features": ["fresh:clicks"], "entities": {"customer_id": [1]}}
SHOWN_AGAIN = "stays refused: this server saw it revoked"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return small_project(tmp_path / "repo", system_clock(), refresh="50ms")


@contextmanager
def ledger(project: Project) -> Iterator[Ledger]:
    with open_registry(read_settings(project.root).registry, project.root) as registry:
        yield registry.ledger


def make_token(project: Project, of: str | None = "shop", *, lasts_us: int | None = None) -> tuple[str, Token]:
    now_us = system_clock()
    end_us = None if lasts_us is None else now_us + lasts_us
    with ledger(project) as found:
        return create_token(found, of, Role.READER, expires_at_us=end_us, now_us=now_us)


def revoke(project: Project, token: Token) -> None:
    with ledger(project) as found:
        revoke_token(found, token.project, token.id, now_us=system_clock())


def status(client: httpx.Client, text: str | None = None) -> int:
    headers = {} if text is None else {"authorization": f"Bearer {text}"}
    return client.post("/v1/online-features", json=BODY, headers=headers).status_code


def start(project: Project, text: str | None = None) -> int:
    """Make the server anew, as a restart does, and ask it once for what wants a reader's token when it is closed."""
    app = create_app(project.workspace())

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            assert (await client.get("/health")).status_code == 200
            headers = {} if text is None else {"authorization": f"Bearer {text}"}
            return (await client.get("/metrics", headers=headers)).status_code

    return asyncio.run(ask())


def replace_registry(project: Project) -> None:
    """Put a fresh registry with the same project and no tokens in the place of the one that is there."""
    project.registry_file.unlink()
    assert project.apply() == 1


def set_server(project: Project, **options: str) -> None:
    """Write settings of the server, over what the file holds."""
    file = project.root / "feature_store.yaml"
    document = json.loads(file.read_text())
    document["server"] |= options
    file.write_text(json.dumps(document))


# What makes a server closed


def with_static_token(project: Project) -> None:
    with serving_here(project.workspace(), token=TOKEN) as client:
        assert (status(client), status(client, TOKEN)) == (401, 200)


def with_the_setting(project: Project) -> None:
    set_server(project, auth="required")
    assert start(project) == 401
    set_server(project, auth="auto")


def with_a_token(project: Project) -> None:
    text, _ = make_token(project)
    assert (start(project), start(project, text)) == (401, 200)


def with_a_token_of_every_project(project: Project) -> None:
    text, _ = make_token(project, None)
    assert start(project, text) == 200


def with_an_expired_token(project: Project) -> None:
    _, token = make_token(project, lasts_us=1_000_000)
    assert token.expires_at_us is not None
    with serving_here(project.workspace(ManualClock(token.expires_at_us))) as client:
        assert status(client) == 401


def with_a_revoked_token(project: Project) -> None:
    _, token = make_token(project)
    revoke(project, token)
    assert start(project) == 401


def with_a_token_while_it_runs(project: Project) -> None:
    with serving_here(project.workspace()) as client:
        assert status(client) == 200
        make_token(project)
        until(lambda: status(client) == 401, seconds=10)


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "close",
    [
        with_static_token,
        with_the_setting,
        with_a_token,
        with_a_token_of_every_project,
        with_an_expired_token,
        with_a_revoked_token,
        with_a_token_while_it_runs,
    ],
)
def test_what_closed_a_server_is_remembered(project: Project, close: Callable[[Project], None]) -> None:
    assert start(project) == 200
    close(project)
    replace_registry(project)
    assert start(project) == 401
    (project.root / access.FILE_NAME).unlink()  # it was the memory, and nothing else
    (project.root / snapshot_file.FILE_NAME).unlink()
    assert start(project) == 200


# What a registry may become


def empty(project: Project) -> None:
    project.registry_file.unlink()
    with ledger(project) as found:
        found.append("another", "run", "view", {})  # a registry is made when something is written


def of_another_project(project: Project) -> None:
    project.registry_file.unlink()
    with open_registry(read_settings(project.root).registry, project.root) as registry:
        record = to_record("others", Entity("shop", {"shop": Int64}))
        changes = [Change("put", record.kind, record.name, record)]
        registry.definitions.apply("others", "", changes, author="test", message="", commit="")


def older_backup(project: Project) -> None:
    (project.root / "backup.db").replace(project.registry_file)


@pytest.mark.parametrize("has_snapshot", [True, False])
@pytest.mark.parametrize("forget", [empty, of_another_project, older_backup, replace_registry])
def test_a_registry_that_knows_no_tokens_opens_nothing(
    project: Project, caplog: pytest.LogCaptureFixture, forget: Callable[[Project], None], has_snapshot: bool
) -> None:
    shutil.copy(project.registry_file, project.root / "backup.db")
    text, _ = make_token(project)
    with serving_here(project.workspace()) as client:
        assert (status(client), status(client, text)) == (401, 200)
        project.until_told()
        forget(project)
        until(lambda: "does not know project" in caplog.text or status(client, text) == 401, seconds=10)
        assert status(client) == 401
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}
    if not has_snapshot:
        (project.root / snapshot_file.FILE_NAME).unlink()
    assert start(project) == 401


def test_the_walk_through_a_replaced_registry_to_an_open_server(project: Project) -> None:
    text, _ = make_token(project)
    with serving(project.root) as server, server.client() as client:
        assert (status(client), status(client, text)) == (401, 200)
        project.until_told()
        replace_registry(project)
        until(lambda: status(client, text) == 401, seconds=10)  # it has taken up the new registry
        assert status(client) == 401
    with serving(project.root) as server, server.client() as client:
        assert (status(client), status(client, text)) == (401, 401)
        assert error_of(client.get("/metrics"))["type"] == "unauthorized"
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}
        assert server.log.read_text().count("Every request is answered 401") == 1
    with serving(project.root, "--open", "--workers", "2") as server:
        assert ask_often(server) == {200}
        make_token(project)
        until(lambda: ask_often(server) == {401}, seconds=10)  # both of its workers


def ask_often(server: ServerProcess) -> set[int]:
    def ask(_: int) -> int:
        with server.client() as client:  # a connection each, so that every worker gets some
            return status(client)

    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(ask, range(12)))


def test_after_open_a_restart_is_open_until_there_is_another_token(project: Project) -> None:
    _, token = make_token(project)
    assert start(project) == 401
    revoke(project, token)
    assert start(project) == 401
    create_app(project.workspace(), reopen=True)
    with serving_here(project.workspace()) as client:
        assert status(client) == 200
        assert set(client.get("/ready").json()) == {"status", "revision", "registry_age_seconds"}
    assert start(project) == 200
    text, _ = make_token(project)
    assert (start(project), start(project, text)) == (401, 200)


def test_closed_workers_say_once_why_and_what_to_do(project: Project) -> None:
    make_token(project)
    assert start(project) == 401
    replace_registry(project)
    with serving(project.root, "--workers", "2") as server:
        assert ask_often(server) == {401}
        log = " ".join(server.log.read_text().split())
    told = "this server is closed, because the registry held tokens, and there is no token that may read"
    assert log.count(told) == 1
    assert "fs token create --role reader" in log
    assert "fs serve --open" in log


@pytest.mark.parametrize("passes", ["reader", "static", "none", "expired", "viewer"])
def test_the_notice_of_a_closed_server_is_for_one_that_nobody_passes(project: Project, passes: str) -> None:
    role = Role.VIEWER if passes == "viewer" else Role.READER
    now_us = system_clock()
    end_us = now_us + 1 if passes == "expired" else None
    if passes != "none":
        with ledger(project) as found:
            create_token(found, "shop", role, expires_at_us=end_us, now_us=now_us)
    set_server(project, auth="required")
    app = create_app(project.workspace(), token=TOKEN if passes == "static" else None)
    assert bool(app.notice) == (passes in ("none", "expired", "viewer"))
    assert ("because the setting server.auth was `required`" in app.notice) == (passes == "none")


# fs serve --open


def test_open_is_refused_beyond_loopback_and_where_something_else_closes(project: Project) -> None:
    def refused(**options: str) -> FeatureStoreError:
        with pytest.raises(SettingsError) as caught:
            create_app(project.workspace(), reopen=True, **options)
        return caught.value

    assert "loopback only, not for '0.0.0.0'" in refused(host="0.0.0.0").message
    assert "FS_SERVER_TOKEN sets one" in refused(token=TOKEN).message
    set_server(project, auth="required")
    assert "server.auth is `required`" in refused().message
    set_server(project, auth="auto")
    for of, lasts_us in (("shop", None), (None, None), ("shop", 1)):
        _, token = make_token(project, of, lasts_us=lasts_us)
        error = refused()
        assert token.id in error.message
        assert "fs token revoke" in error.hint
        revoke(project, token)
    create_app(project.workspace(), reopen=True)
    assert start(project) == 200


def test_open_is_refused_while_only_the_snapshot_knows_of_tokens(project: Project) -> None:
    make_token(project)
    assert start(project) == 401
    project.registry_file.unlink()
    with pytest.raises(SettingsError, match="what was saved of it while it is away"):
        create_app(project.workspace(), reopen=True)


def test_open_on_a_damaged_memory_writes_it_anew(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    with_static_token(project)
    (project.root / access.FILE_NAME).write_text("{}")
    assert start(project) == 401
    assert "access.json was damaged: this server is closed" in caplog.text
    (project.root / access.FILE_NAME).write_text("{}")
    create_app(project.workspace(), reopen=True)
    assert start(project) == 200


def test_open_where_the_memory_cannot_be_written_is_refused(project: Project) -> None:
    with_static_token(project)
    shutil.rmtree(project.root / access.FILE_NAME.parent)
    (project.root / access.FILE_NAME.parent).write_text("in the way")
    with pytest.raises(SettingsError, match=r"access\.json cannot be written: "):
        create_app(project.workspace(), reopen=True)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--host", "0.0.0.0"], {}, "--open serves everyone who reaches the server"),
        ([], {"FS_SERVER_TOKEN": TOKEN}, "FS_SERVER_TOKEN sets one"),
        ([], {"FS_SERVER__AUTH": "required"}, "server.auth is `required`"),
    ],
)
def test_a_refused_open_is_one_message(
    project: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("FS_SERVER")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fs = CommandLine(project.root, capsys)
    fs("serve", "--port", "0", "--open", *arguments, expect=1)
    told = " ".join(fs.err.split())
    assert message in told
    assert "What to do: " in told
    assert "Traceback" not in told


def test_beyond_loopback_a_closed_server_wants_a_token_to_start(project: Project) -> None:
    set_server(project, auth="required")
    with pytest.raises(SettingsError, match=r"loopback only, not on '0\.0\.0\.0'"):
        create_app(project.workspace(), host="0.0.0.0")
    text, _ = make_token(project)
    with serving_here(project.workspace(), host="0.0.0.0") as client:
        assert (status(client), status(client, text)) == (401, 200)


# Tokens that were revoked


def test_a_token_seen_revoked_stays_refused_by_a_restored_registry(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    good, _ = make_token(project)
    ended, token = make_token(project)
    of_all, every = make_token(project, None)
    shutil.copy(project.registry_file, project.root / "backup.db")
    with serving_here(project.workspace()) as client:
        assert [status(client, text) for text in (good, ended, of_all)] == [200, 200, 200]
        old_snapshot = (project.root / snapshot_file.FILE_NAME).read_bytes()
        revoke(project, token)
        revoke(project, every)
        until(lambda: [status(client, text) for text in (good, ended, of_all)] == [200, 401, 401], seconds=10)
        project.until_told()
        (project.root / "backup.db").replace(project.registry_file)
        until(lambda: caplog.text.count(SHOWN_AGAIN) == 2, seconds=10)
        assert [status(client, text) for text in (good, ended, of_all)] == [200, 401, 401]
        assert token.id in caplog.text
    for _ in range(2):  # with the restored registry, then with the snapshot alone
        with serving_here(project.workspace()) as client:
            assert [status(client, text) for text in (good, ended, of_all)] == [200, 401, 401]
        (project.root / snapshot_file.FILE_NAME).write_bytes(old_snapshot)
        project.registry_file.unlink(missing_ok=True)


def test_a_token_seen_revoked_by_one_server_is_refused_by_its_neighbours(project: Project) -> None:
    good, _ = make_token(project)
    ended, token = make_token(project)
    shutil.copy(project.registry_file, project.root / "backup.db")
    revoke(project, token)
    with serving_here(project.workspace()) as client:
        assert status(client, ended) == 401
    (project.root / "backup.db").replace(project.registry_file)
    with serving(project.root) as server, server.client() as client:
        assert [status(client, text) for text in (good, ended)] == [200, 401]


def test_open_brings_no_revoked_token_back(project: Project) -> None:
    _, token = make_token(project)
    shutil.copy(project.registry_file, project.root / "backup.db")
    revoke(project, token)
    create_app(project.workspace(), reopen=True)
    assert start(project) == 200
    (project.root / "backup.db").replace(project.registry_file)
    with pytest.raises(SettingsError, match=token.id):  # the registry holds it
        create_app(project.workspace(), reopen=True)
    app = create_app(project.workspace())
    assert "because the registry held tokens" in app.notice  # it closes, and nobody passes
    with pytest.raises(SettingsError, match="loopback only"):
        create_app(project.workspace(), host="0.0.0.0")


# Beside the server


def test_tokens_in_the_snapshot_of_a_version_without_a_memory_are_remembered(project: Project) -> None:
    make_token(project)
    assert start(project) == 401
    (project.root / access.FILE_NAME).unlink()
    replace_registry(project)
    assert start(project) == 401


def test_a_memory_that_cannot_be_written_is_told_and_serving_goes_on(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    (project.root / access.FILE_NAME.parent).write_text("in the way")
    text, _ = make_token(project)
    assert start(project, text) == 200
    assert "access.json cannot be written" in caplog.text
    assert "Let this user write the folder" in caplog.text


def test_doctor_tells_whether_a_server_here_is_closed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> Check:
        workspace = project.workspace()
        (found,) = [check for check in examine(workspace) if check.name == "access"]
        workspace.close()
        return found

    file = project.root / access.FILE_NAME
    assert told() == Check("access", "ok", "a server on loopback is open to all who reach it: no token is known here")
    _, token = make_token(project)
    assert told().message == "servers are closed: the registry holds tokens"
    assert start(project) == 401
    revoke(project, token)
    assert told().message == "servers are closed: the registry held tokens"
    file.write_text("damaged")
    assert told() == Check(
        "access",
        "warning",
        f"servers are closed: {file} was damaged",
        "A server writes the file again when it starts, and stays closed.",
    )
    assert file.read_text() == "damaged"
    monkeypatch.setenv("FS_SERVER__AUTH", "required")
    assert told().message == "servers are closed: server.auth is `required`"


def test_a_static_token_that_is_too_short_is_no_word_to_remember(project: Project) -> None:
    with pytest.raises(RegistryError, match="32 characters"):
        create_app(project.workspace(), token="short")
    assert start(project) == 200


def test_new_stores_are_their_owners_and_the_modes_of_old_ones_stay(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        project = small_project(tmp_path / "repo", system_clock())
        files = [project.registry_file, project.root / "data" / "online" / "data.mdb"]
        assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
        for file in files:
            file.chmod(0o640)
        make_token(project)
        small_project(tmp_path / "repo", system_clock())
        assert [file.stat().st_mode & 0o777 for file in files] == [0o640, 0o640]
    finally:
        os.umask(before)
