"""What people rightly do with a project's pieces raises no alarm, loses nothing, and touches nothing of others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from support.command_line import CommandLine
from support.disks import read_only
from support.lives import check_calm, contents, copy_of
from support.pieces import Lives, Project, day
from support.redis_server import RedisServer
from support.serving import serving

from featurestore.errors import MismatchError, OfflineStoreError

pytestmark = pytest.mark.uncounted

NEWEST = {1: 11, 2: 20, 3: 30, 4: 40, 5: 50, 6: None, 7: None}
"""What is online of a project that has `lived`."""
Open = Callable[[Project], CommandLine]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else request.getfixturevalue("redis_url")  # type: ignore[no-any-return]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Open:
    return lambda project: CommandLine(project.root, capsys)


BOTH = pytest.mark.parametrize("url", ["lmdb", "redis"], indirect=True)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def online_at(url: str) -> dict[str, str]:
    """Return the settings of another online store, in time for a machine that is busy with other tests."""
    slow = {"FS_ONLINE_STORE__READ_TIMEOUT_MS": "1000"} if url.startswith("redis") else {}
    return {"FS_ONLINE_STORE": url, **slow}


def online_url(project: Project) -> str:
    return project.online_url or f"lmdb:///{project.root / 'data/online'}"


def published(fs: CommandLine) -> tuple[int, int]:
    """Return how many rows a run appended, and how many records it sent."""
    (run,) = fs.json("materialize")
    return run["appended"], run["published"]["written"] + run["published"]["stale"]


# Copies.


@BOTH
def test_production_data_on_a_laptop(tmp_path: Path, lived: Lives, url: str | None, shell: Open) -> None:
    production, _ = lived(tmp_path / "production", url)
    before = contents(production)
    laptop = copy_of(production, tmp_path / "laptop")
    fs = shell(laptop)
    (found,) = laptop.mismatches()
    assert (found.kind, found.heals) == ("missing", True)
    fs("doctor")
    fs("plan", "--check")
    assert published(fs) == (0, 5)
    check_calm(laptop, fs)
    assert laptop.online() == NEWEST
    laptop.push(6, 5, 60)
    laptop.apply("tried out")
    check_calm(laptop, fs)
    assert contents(production) == before
    fs("gc")
    fs("optimize")
    assert contents(production) == before
    production.push(7, 5, 70)
    assert published(shell(production)) == (0, 2)  # both pushes since its last run
    check_calm(production, shell(production))
    assert production.online([6, 7]) == {6: None, 7: 70}


def go_apart(tmp_path: Path, lived: Lives, url: str | None) -> tuple[Project, Project]:
    """Return production and a copy for staging, after each applied and wrote something of its own."""
    production, _ = lived(tmp_path / "production", url)
    staging = copy_of(production, tmp_path / "staging")
    staging.run()
    for project, name, driver in ((production, "third", 6), (staging, "another third", 7)):
        project.apply(name)
        project.source([(driver, 5, 10 * driver)])
        project.run()
    return production, staging


def refused(fs: CommandLine, *command: str) -> str:
    """Return what a command says that must fail."""
    return fs(*command, expect=1)


@BOTH
def test_staging_that_points_at_productions_online_store_only_reads(
    tmp_path: Path, lived: Lives, url: str | None, shell: Open
) -> None:
    production, staging = go_apart(tmp_path, lived, url)
    for project, driver in ((production, 6), (staging, 7)):
        check_calm(project, shell(project))
        assert project.online() == {**NEWEST, driver: 10 * driver}
    fs, before = shell(staging), contents(production)
    staging.source([(2, 6, 21)])
    with environment(**online_at(online_url(production))):
        (found,) = staging.mismatches()
        assert (found.piece, found.kind, found.heals) == ("online", "unknown_revision", False)
        for command in ("materialize", "doctor", "verify"):
            assert "at revision" in refused(fs, command), command
        for command in (["materialize", "--republish", "--authoritative"], ["teardown", "--allow-destroy"]):
            assert "which this registry does not have" in refused(fs, *command).replace(
                "that this registry", "which this registry"
            )
        with pytest.raises(MismatchError, match="online records of stats were last written at revision"):
            staging.push(2, 6, 22)
        with staging.open() as store:  # into staging's own table: production's online part hears nothing of it
            store.push("trips", {"driver": [2], "at": [day(6)], "count": [23], "stars": [1]}, to="offline")
        assert "online records of stats" in fs("repair", "--dry-run")
        fs("status")
        fs("optimize")
        assert fs.json("gc")["records"] == 0
        assert staging.online([6, 7]) == {6: 60, 7: None}  # production's
    assert contents(production) == before
    check_calm(production, shell(production))
    fs("materialize")
    check_calm(staging, fs)


def test_staging_that_points_at_productions_offline_store_only_reads(tmp_path: Path, lived: Lives, shell: Open) -> None:
    production, staging = go_apart(tmp_path, lived, None)
    fs = shell(staging)
    staging.source([(2, 6, 21)])
    before, own = contents(production), contents(staging)
    with environment(FS_OFFLINE_STORE=str(production.root / "data/offline")):
        assert ("offline", "unknown_revision") in staging.kinds()
        for command in (["materialize"], ["optimize"], ["doctor"], ["verify"], ["teardown", "--allow-destroy"]):
            assert "does not have" in refused(fs, *command)
        for to in ("both", "offline"):
            with staging.open() as store, pytest.raises(MismatchError, match=r"written at|does not have"):
                store.push("trips", {"driver": [2], "at": [day(6)], "count": [22], "stars": [1]}, to=to)
        assert "last written at revision" in fs.json("plan")["notices"][0]
        garbage = fs.json("gc")
        assert (garbage["files"], garbage["records"], garbage["tables"]) == (0, 0, [])
        assert "last written at a revision that this registry does not have" in garbage["kept"][0]["why"]
    assert contents(production) == before
    # Of staging's own pieces only the ledger has moved: it says that a run failed.
    assert {name for name, content in contents(staging).items() if own.get(name) != content} <= {
        str(staging.root / "data/registry.db")
    }
    fs("materialize")
    check_calm(staging, fs)


# Moves.


@BOTH
def test_a_project_moves_piece_by_piece(tmp_path: Path, lived: Lives, url: str | None, shell: Open) -> None:
    project, _ = lived(tmp_path / "here", url)
    project.run()
    with project.open() as store:
        frame = pa.table({"driver": [1, 4], "event_timestamp": [day(5)] * 2})
        saved = store.get_historical_features(frame, "model").save("first").to_arrow()
    settings = (project.root / "feature_store.yaml").read_text()
    for step in ("registry", "offline", "repo"):
        if step == "repo":
            project.root = project.root.rename(tmp_path / "there")
        else:
            piece = {"registry": "registry.db", "offline": "offline"}[step]
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            shutil.move(project.root / "data" / piece, tmp_path / "elsewhere" / piece)
            line = {
                "registry": f"registry: sqlite:///{tmp_path}/elsewhere/registry.db\n",
                "offline": f"offline_store: {tmp_path}/elsewhere/offline\n",
            }[step]
            settings += line
            (project.root / "feature_store.yaml").write_text(settings)
        fs = shell(project)
        check_calm(project, fs)
        assert published(fs) == (0, 0)
        check_calm(project, fs)
        with project.open() as store:
            assert store.get_training_set("first").to_arrow().equals(saved)
    project.push(6, 5, 60)
    assert published(fs) == (0, 1)
    assert project.online() == {**NEWEST, 6: 60}


# Neighbours.


def neighbour_of(project: Project, root: Path) -> Project:
    """Return another project in the same offline folder and online store, which has lived as much."""
    other = Project(root, project.online_url)
    settings = (root / "feature_store.yaml").read_text().replace("project: shop", "project: shop_2")
    settings = settings.replace("lmdb:///data/online", online_url(project))
    (root / "feature_store.yaml").write_text(f"{settings}offline_store: {project.root / 'data/offline'}\n")
    other.source([(1, 1, 100), (2, 1, 200)])
    other.apply("first")
    other.run()
    other.push(3, 2, 300)
    other.run()
    return other


@BOTH
def test_a_neighbour_is_untouched_by_a_restore_a_repair_and_a_teardown(
    tmp_path: Path, lived: Lives, url: str | None, shell: Open
) -> None:
    project, backup = lived(tmp_path / "one", url)
    other = neighbour_of(project, tmp_path / "two")
    tables = project.root / "data/offline"

    def check_other() -> None:
        assert other.kinds() == set()
        for command in ("doctor", "verify", "status"):
            shell(other)(command)
        assert other.online([1, 2, 3, 4]) == other.offline([1, 2, 3, 4]) == {1: 100, 2: 200, 3: 300, 4: None}

    check_calm(project, shell(project))
    check_other()
    files = {path: path.read_bytes() for path in (tables / "shop_2").rglob("*") if path.is_file()}
    project.lose("registry")
    shutil.copy(backup / "registry.db", project.root / "data/registry.db")
    shutil.rmtree(tables / "shop")
    shutil.copytree(backup / "offline/shop", tables / "shop")
    assert ("online", "unknown_revision") in project.kinds()
    check_other()
    shell(project)("repair", "--yes")
    # Of what came after the backup only the pushed row is lost; the source still holds the others.
    assert project.online() == project.offline() == {**NEWEST, 5: None}
    assert project.kinds() == set()
    check_other()
    shell(project)("teardown", "--allow-destroy")
    check_other()
    assert {path: path.read_bytes() for path in (tables / "shop_2").rglob("*") if path.is_file()} == files
    assert list((tables / "shop").rglob("*.parquet")) == []
    if url is not None:
        assert project._dump() == {}


# Looking without a right to write.


def everything_read(project: Project, fs: CommandLine, target: Path) -> None:
    """Run all that only reads."""
    with project.open() as store:
        frame = pa.table({"driver": [1, 4], "event_timestamp": [day(5)] * 2})
        made = store.get_historical_features(frame, "model")
        assert made.to_arrow()["count"].to_pylist() == [11, 40]
        assert made.certificate.rows == 2
        made.write_parquet(target / "set.parquet")
        assert store.get_historical_features(frame, "model", direct=True).to_arrow()["count"].to_pylist() == [11, None]
        assert store.get_training_set("first").to_arrow()["count"].to_pylist() == [11, 40]
    for command in ("peek stats", "status", "verify", "doctor", "plan --check", "gc --dry-run", "repair --dry-run"):
        fs(*command.split())
    assert project.online() == NEWEST


@BOTH
def test_a_read_only_offline_folder(tmp_path: Path, lived: Lives, url: str | None, shell: Open) -> None:
    project, _ = lived(tmp_path / "repo", url)
    with project.open() as store:
        frame = pa.table({"driver": [1, 4], "event_timestamp": [day(5)] * 2})
        store.get_historical_features(frame, "model").save("first")
    fs, before = shell(project), contents(project)
    with read_only(project.root / "data/offline"):
        everything_read(project, fs, tmp_path)
        assert contents(project) == before
        project.source([(6, 5, 60)])
        told = fs("materialize", expect=1)
        assert "data/offline" in told or "shop/stats" in told
        with pytest.raises(OfflineStoreError, match=r"Read-only|Permission"):
            project.push(6, 5, 61)
        with serving(project.root) as server, server.client() as client:
            asked = {"features": ["stats:count"], "entities": {"driver": [1, 5]}}
            assert client.post("/v1/online-features", json=asked).json()["rows"] == [[11], [50]]
            row = {"driver": [6], "at": [day(5).isoformat()], "count": [61], "stars": [1]}
            answer = client.post("/push", json={"source": "trips", "rows": row})
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "The offline store did not take the rows."
        assert project.online() == NEWEST
    assert published(fs) == (1, 1)
    check_calm(project, fs)


def test_comparing_makes_no_folder(tmp_path: Path, shell: Open) -> None:
    project = Project(tmp_path / "repo", None)
    project.source([(1, 1, 10)])
    fs = shell(project)
    with environment(FS_OFFLINE_STORE=str(tmp_path / "not_there")):
        for command in ("plan", "status", "doctor"):
            fs(command)
        fs("verify", expect=1)  # of a project that the registry does not know
        assert not (tmp_path / "not_there").exists()
    fs("apply", "--yes")
    with environment(FS_OFFLINE_STORE=str(tmp_path / "not_there")):
        for command in ("plan", "status", "doctor", "verify", "gc --dry-run", "repair --dry-run", "peek stats"):
            fs(*command.split())
        assert not (tmp_path / "not_there").exists()


# A registry that is thrown away.


@pytest.mark.parametrize(("url", "bound"), [("lmdb", True), ("redis", True), ("redis", False)], indirect=["url"])
def test_a_throw_away_registry_leaves_no_trace_in_production(
    tmp_path: Path, lived: Lives, url: str | None, bound: bool, shell: Open
) -> None:
    project, _ = lived(tmp_path / "repo", url)
    if not bound:
        (project.root / "data/offline/shop/_owner.json").unlink()  # as an earlier release left it
    before = contents(project)
    with environment(FS_REGISTRY=f"sqlite:///{tmp_path / 'ci' / 'registry.db'}"):
        fs = shell(project)
        for command in (["plan"], ["apply", "--yes"]):
            told = fs(*command)
            assert "The offline store holds 1 table of 'shop'" in told
            assert ("of the project with identity" in told) is bound
        # The online store tells also where the offline folder does not.
        assert "belong to" in fs("doctor", expect=1)
        assert bool([found for found in fs.json("plan")["notices"] if "belong to the project" in found]) is bound
        with project.open() as store:
            frame = pa.table({"driver": [1, 3], "event_timestamp": [day(5)] * 2})
            made = store.get_historical_features(frame, "model", direct=True)
            assert made.to_arrow()["count"].to_pylist() == [11, 30]
        if bound:
            assert "belong to the project with identity" in fs("materialize", expect=1)
        fs("gc")
        project.declare("changed in CI")
        fs("apply", "--yes")
    assert contents(project) | {str(project.root / "features.py"): b""} == before | {
        str(project.root / "features.py"): b""
    }
    project.declare("second")
    project.run()
    check_calm(project, shell(project))


# Blue and green.


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_blue_and_green_online_stores(
    tmp_path: Path, kind: str, start_redis: Callable[..., RedisServer], shell: Open
) -> None:
    blue, green = (
        start_redis().url if kind == "redis" else f"lmdb:///{tmp_path}/{color}" for color in ("blue", "green")
    )
    project = Project(tmp_path / "repo", None)
    fs = shell(project)
    project.source([(1, 1, 10), (2, 1, 20)])

    def check() -> None:
        assert project.kinds() == set()
        assert project.online() == project.offline()
        fs("verify")
        fs("doctor")
        assert published(fs) == (0, 0)

    with environment(**online_at(blue)):
        project.apply("first")
        project.run()
        project.push(4, 2, 40)
        project.source([(3, 3, 30)])
        project.run()
        check()
    with environment(**online_at(green)):
        (found,) = project.mismatches()
        assert (found.kind, found.heals) == ("missing", True)
        project.push(5, 4, 50)
        assert published(fs) == (0, 5)
        check()
        del project.rows["driver"][1], project.rows["at"][1], project.rows["count"][1], project.rows["stars"][1]
        project.source([(1, 4, 11)])
        fs("materialize", day(0).isoformat(), day(10).isoformat(), "--rebuild", "--yes")
        fs("optimize")
        check()
        assert project.online() == {**NEWEST, 2: None}
    with environment(**online_at(blue)):
        (found,) = project.mismatches()
        assert (found.kind, found.heals) == ("behind", True)
        assert project.online() == {1: 10, 2: 20, 3: 30, 4: 40, 5: None, 6: None, 7: None}
        project.push(6, 5, 60)
        fs("materialize")
        check()
        assert project.online() == {**NEWEST, 2: None, 6: 60}
    with environment(**online_at(green)):
        fs("materialize")
        check()
