"""What is served when: the registry refreshed, away, back, replaced; code that is not what was applied."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.records import Change, Record, fingerprint
from featurestore_registry.sql.tables import VERSION_TABLE
from support.clock import ManualClock
from support.redis_server import RedisServer
from support.serving import TOKEN, Project, error_of, metric, serving, serving_here, small_project, until

from featurestore.backends import open_registry
from featurestore.errors import RegistryFormatError, RegistryUnavailableError, SettingsError
from featurestore.project.settings import StoreSettings, read_settings
from featurestore.registered.snapshot_file import FILE_NAME
from featurestore.server.app import create_app
from featurestore.server.read import templates
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.types.times import system_clock

QUICK = "50ms"
BODY = {"features": ["fresh:clicks"], "entities": {"customer_id": [1]}}


def clicks(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/online-features", json=BODY)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return small_project(tmp_path / "repo", system_clock(), refresh=QUICK)


def test_a_removed_feature_stops_and_a_new_one_is_served_within_the_refresh_interval(project: Project) -> None:
    with serving_here(project.workspace()) as client:
        assert clicks(client).status_code == 200
        assert metric(client, "featurestore_snapshot_revision") == 1
        project.apply(without=["feature_service:model_v1", "on_demand_feature_view:spending"])
        body = {"feature_service": "model_v1", "entities": {"customer_id": [1]}}
        until(lambda: client.post("/v1/online-features", json=body).status_code == 404)
        assert metric(client, "featurestore_snapshot_revision") == 2
        assert clicks(client).json()["rows"] == [[7]]
        project.apply()
        until(lambda: client.post("/v1/online-features", json=body).status_code == 422)


def test_it_serves_on_while_the_registry_is_away_and_after_it_came_back(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock(system_clock())
    with serving_here(project.workspace(clock)) as client:
        project.until_told()
        away = project.registry_file.rename(project.root / "away.db")
        until(lambda: "There is no registry at" in caplog.text)
        clock.now_us += 30_000_000
        until(lambda: metric(client, "featurestore_registry_age_seconds") >= 30)
        assert client.get("/ready").json() == {"status": "ready", "revision": 1, "registry_age_seconds": 30.0}
        assert clicks(client).json()["rows"] == [[7]]
        assert client.get("/ready").status_code == 200
        assert caplog.text.count("There is no registry at") == 1
        assert not project.registry_file.exists()
        shutil.copy(away, project.registry_file)
        until(lambda: metric(client, "featurestore_registry_age_seconds") == 0)
        project.apply(without=["feature_service:plain"])
        until(lambda: metric(client, "featurestore_snapshot_revision") == 2)


def test_a_cold_start_without_the_registry_serves_what_was_last_known(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock(system_clock())
    with serving_here(project.workspace(clock)):
        pass
    saved = project.root / FILE_NAME
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    project.registry_file.unlink()
    clock.now_us += 600_000_000
    with serving_here(project.workspace(clock)) as client:
        assert clicks(client).json()["rows"] == [[7]]
        assert metric(client, "featurestore_registry_age_seconds") == 600
        assert "Serving revision 1 as it was confirmed at" in caplog.text
    assert not project.registry_file.exists()


def test_without_registry_and_snapshot_nothing_starts_and_nothing_is_created(tmp_path: Path) -> None:
    project = Project(tmp_path / "repo")
    shutil.rmtree(project.root / "data")
    with pytest.raises(RegistryUnavailableError, match=r"There is no registry at .*Run `fs apply`"):
        create_app(project.root)
    assert not (project.root / "data").exists()
    assert not (project.root / FILE_NAME).exists()


def test_a_damaged_snapshot_is_refused_while_the_registry_is_away_and_replaced_when_it_is_there(
    project: Project,
) -> None:
    create_app(project.workspace())
    saved = project.root / FILE_NAME
    good = saved.read_bytes()
    saved.write_bytes(good.replace(b"clicks", b"clacks"))
    project.registry_file.rename(project.root / "away.db")
    with pytest.raises(RegistryFormatError, match=r"snapshot\.json is damaged.*Delete the file"):
        create_app(project.workspace())
    (project.root / "away.db").rename(project.registry_file)
    create_app(project.workspace())
    assert saved.read_bytes() == good


def test_an_empty_registry_in_the_place_of_a_lost_one_ends_nothing(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_here(project.workspace()) as client:
        project.until_told()
        empty = project.root / "data" / "empty.db"
        with open_registry(StoreSettings(url="sqlite:///data/empty.db"), project.root) as registry:
            registry.ledger.append("another", "run", "view", {})  # a registry is made when something is written
            empty.rename(project.registry_file)
        until(lambda: "The registry does not know project 'shop'" in caplog.text)
        assert clicks(client).json()["rows"] == [[7]]
    with serving_here(project.workspace()) as client:  # nor does a restart
        assert clicks(client).json()["rows"] == [[7]]


def test_a_registry_that_went_back_is_followed_with_a_warning(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    old = project.registry_file.read_bytes()
    project.apply(without=["feature_service:plain"])
    with serving_here(project.workspace()) as client:
        project.until_told()
        (project.root / "old.db").write_bytes(old)
        (project.root / "old.db").rename(project.registry_file)
        until(lambda: metric(client, "featurestore_snapshot_revision") == 1)
        assert "went back from revision 2 to 1" in caplog.text


def test_a_registry_of_a_newer_version_leaves_the_last_good_definitions(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_here(project.workspace()) as client:
        with sqlite3.connect(project.registry_file) as connection:
            connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = 'r9999_future'")
        connection.close()
        until(lambda: "newer version" in caplog.text)
        assert clicks(client).json()["rows"] == [[7]]
    with serving_here(project.workspace()) as client:
        assert clicks(client).json()["rows"] == [[7]]


def test_definitions_that_this_version_cannot_read_leave_the_last_good_ones(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_here(project.workspace()) as client:
        record = Record("embedding_view", "shop", "x", {}, fingerprint({}))
        with open_registry(read_settings(project.root).registry, project.root) as registry:
            change = [Change("put", record.kind, record.name, record)]
            on = registry.definitions.chain("shop").head
            registry.definitions.apply("shop", on, change, author="", message="", commit="")
        until(lambda: "cannot read" in caplog.text)
        assert clicks(client).json()["rows"] == [[7]]


def test_a_folder_that_cannot_be_written_only_costs_the_cold_start(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    (project.root / FILE_NAME.parent).write_text("in the way")
    with serving_here(project.workspace()) as client:
        assert clicks(client).status_code == 200
        assert "could not be saved" in caplog.text


def test_an_unexpected_failure_does_not_end_the_refreshing(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    keeper = SnapshotKeeper(project.workspace())
    keeper.load()
    (project.root / FILE_NAME).unlink()
    assert keeper.refresh() == "same"
    assert (project.root / FILE_NAME).exists()

    def fail() -> int:
        raise ZeroDivisionError

    keeper._workspace.clock = fail
    assert keeper.refresh() == "failed"
    assert "refreshing the definitions failed" in caplog.text


def test_code_that_is_not_what_was_applied_answers_503_and_everything_else_serves(project: Project) -> None:
    text = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(text.replace("amount / clicks", "amount * clicks"))
    with serving_here(project.workspace()) as client:
        response = client.post(
            "/v1/online-features",
            json={"features": ["spending:amount_per_click"], **{"entities": {"customer_id": [1]}}},
        )
        assert response.status_code == 503
        error = error_of(response)
        assert error["type"] == "code_mismatch"
        assert "spending" in error["message"]
        assert client.post("/v1/online-features", json={**BODY, "feature_service": None}).status_code == 200
        entities: dict[str, list[Any]] = {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]}
        answer = client.post("/v1/online-features", json={"feature_service": "plain", "entities": entities}).json()
        assert answer["rows"] == [[7, 0.5, 2475]]


@pytest.mark.parametrize("code", [None, "import nothing_like_this\n"])
def test_a_repo_without_code_or_with_code_that_fails_serves_what_needs_none(project: Project, code: str | None) -> None:
    (project.root / "features.py").unlink()
    if code is not None:
        (project.root / "features.py").write_text(code)
    with serving_here(project.workspace()) as client:
        assert clicks(client).json()["rows"] == [[7]]
        body = {"feature_service": "model_v1", "entities": {"customer_id": [1]}}
        assert error_of(client.post("/v1/online-features", json=body))["type"] == "code_mismatch"


def test_the_real_server_restarts_without_its_registry(project: Project) -> None:
    with serving(project.root) as server, server.client() as client:
        assert clicks(client).json()["rows"] == [[7]]
        project.registry_file.rename(project.root / "away.db")
        assert clicks(client).json()["rows"] == [[7]]
    with serving(project.root) as server, server.client() as client:
        assert clicks(client).json()["rows"] == [[7]]
        assert "Serving revision 1 as it was confirmed at" in server.log.read_text()
    assert not project.registry_file.exists()


def test_tokens_of_the_ledger_close_the_server_and_outlive_the_registry(project: Project) -> None:
    with open_registry(read_settings(project.root).registry, project.root) as registry:
        now_us = system_clock()
        reader, token = create_token(registry.ledger, "shop", Role.READER, expires_at_us=None, now_us=now_us)
        viewer, _ = create_token(registry.ledger, None, Role.VIEWER, expires_at_us=None, now_us=now_us)
        other, _ = create_token(registry.ledger, "other", Role.ADMIN, expires_at_us=None, now_us=now_us)
    create_app(project.workspace(), host="0.0.0.0")
    saved = json.loads((project.root / FILE_NAME).read_bytes())
    assert token.hash in json.dumps(saved)
    assert reader not in json.dumps(saved)
    for _ in range(2):
        with serving_here(project.workspace()) as client:

            def status(text: str, client: httpx.Client = client) -> int:
                headers = {"authorization": f"Bearer {text}"}
                return client.post("/v1/online-features", json=BODY, headers=headers).status_code

            assert [status(text) for text in (reader, viewer, other, TOKEN)] == [200, 403, 401, 401]
            assert clicks(client).status_code == 401
        if project.registry_file.exists():
            project.registry_file.unlink()


def test_beyond_loopback_there_must_be_a_token(project: Project) -> None:
    with pytest.raises(SettingsError, match=r"loopback only, not on '0\.0\.0\.0'.*FS_SERVER_TOKEN"):
        create_app(project.workspace(), host="0.0.0.0")
    create_app(project.workspace(), host="0.0.0.0", token=TOKEN)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        create_app(project.workspace(), host=host)
    for host in ("", "::", "192.168.1.1", "example.org", "localhost.example.org"):
        with pytest.raises(SettingsError):
            create_app(project.workspace(), host=host)


TIMES = 30


def test_records_of_an_older_schema_are_read_by_name_and_a_lost_schema_is_not_asked_for_each_time(
    tmp_path: Path, redis_server: RedisServer, redis_url: str
) -> None:
    now_us = system_clock()
    project = small_project(tmp_path / "repo", now_us, online_url=redis_url)
    text = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(
        text.replace('Field("clicks", Int64, default=0), Field("score", Float64)', 'Field("score", Float64)')
        .replace('fresh[["clicks"]], request', "routes, request")
        .replace('inputs["clicks"]', 'inputs["miles"]')
    )
    project.put("fresh", {"customer_id": 1}, {"clicks": 7, "score": 0.5}, event_us=now_us)
    project.apply()
    body = {"features": ["fresh:score"], "entities": {"customer_id": [1]}}
    # One look for each request and one at the schema; the server itself looks at markers now and then.
    once_more = range(TIMES + 1, 2 * TIMES - 10)

    def lookups() -> int:
        with redis_server.client() as client:
            return int(client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])

    with serving_here(project.workspace()) as client:

        def ask() -> list[Any]:
            answer = client.post("/v1/online-features", json=body).json()
            return [answer["rows"], answer["status"]]

        before = lookups()
        assert [ask() for _ in range(TIMES)] == [[[[0.5]], [["PRESENT"]]]] * TIMES
        assert lookups() - before in once_more
    with redis_server.client() as client:
        for key in client.scan_iter("fs:shop:fresh:schema:*"):
            client.delete(key)
    with serving_here(project.workspace()) as client:
        before = lookups()
        assert [ask() for _ in range(TIMES)] == [[[[None]], [["NOT_FOUND"]]]] * TIMES
        assert lookups() - before in once_more


def test_only_so_many_templates_are_kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_SHAPES", 2)
    keeper = SnapshotKeeper(project.workspace())
    keeper.load()
    features = ("fresh:clicks", "fresh:score", "everything:a_bool")
    asked = [templates.Asked(f'["{feature}"]'.encode(), None, False) for feature in features]
    kept = keeper.current
    first, second = kept.template(asked[0]), kept.template(asked[1])
    assert kept.template(asked[0]) is first
    kept.template(asked[2])
    assert kept.template(asked[0]) is first
    assert kept.template(asked[1]) is not second


def test_what_is_in_use_is_compiled_before_a_swap(project: Project) -> None:
    keeper = SnapshotKeeper(project.workspace())
    keeper.load()
    here, gone = templates.Asked(b'["fresh:clicks"]', None, False), templates.Asked(b"null", "plain", False)
    before = [keeper.current.template(asked) for asked in (here, gone)]
    project.apply(without=["feature_service:plain"])
    assert keeper.refresh() == "changed"
    assert list(keeper.current._kept) == [here]
    assert keeper.current.template(here) not in before
