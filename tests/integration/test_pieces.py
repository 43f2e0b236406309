"""Every pair of pieces that do not fit: what is said, what is left alone, and what `fs repair` makes of it.

Each case breaks one of registry, offline store and online store of a project that has lived a little
(`support.pieces`): restored to a backup, lost, another project's, or of the same numbers with other content.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from support.clock import ManualClock
from support.pieces import PIECES, Lives, Project, day

from featurestore.cli.main import main
from featurestore.consistency.belonging import Kind
from featurestore.errors import FeatureStoreError, MaterializationError, MismatchError, NotFoundError
from featurestore.ledger.commits import known_commit, remember_commit
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.maintenance.verify import verify
from featurestore.materialization import republish
from featurestore.offline import groups
from featurestore.offline.interface import WATERMARK, TableId
from featurestore.offline.local import archive
from featurestore.offline.local import store as delta
from featurestore.online.lmdb.store import LmdbStore
from featurestore.repair import find_repairs, repair
from featurestore.store import FeatureStore
from featurestore.training.coverage import TrainingSetWarning
from featurestore.types.times import system_clock

Break = Callable[[Project, Path, Path], None]
"""Breaks a project, given its backup and a place of its own."""


def older(piece: str) -> Break:
    return lambda project, backup, place: project.restore(backup, piece)


def lost(piece: str) -> Break:
    def broken(project: Project, backup: Path, place: Path) -> None:
        project.lose(piece)
        if piece == "registry":
            project.apply("anew")

    return broken


def another(piece: str) -> Break:
    """Put in a piece of another project of the same name."""

    def broken(project: Project, backup: Path, place: Path) -> None:
        project.back_up(place / "own")
        for each in PIECES:
            project.lose(each)
        other = Project(place / "other", project.online_url)
        other.source([(1, 1, 1000), (6, 1, 6000)])
        other.apply("of another")
        other.run()
        other.back_up(place / "others")
        for each in PIECES:
            project.restore(place / ("others" if each == piece else "own"), each)

    return broken


def rewritten(piece: str) -> Break:
    """Restore everything, let it go another way up to the same numbers, and keep that way's piece alone."""

    def broken(project: Project, backup: Path, place: Path) -> None:
        project.back_up(place / "own")
        for each in PIECES:
            project.restore(backup, each)
        project.apply("another way")
        project.push(7, 5, 70)
        project.back_up(place / "other")
        for each in PIECES:
            project.restore(place / ("other" if each == piece else "own"), each)
        project.declare("another way" if piece == "registry" else "second")

    return broken


BEFORE = {1: 11, 2: 20, 3: 30, 4: 40, 5: 50, 6: None, 7: None}
"""Driver 1 to 3 came from the source, 4 and 5 were pushed."""


@dataclass(frozen=True)
class Case:
    """What is to come of one broken piece."""

    kinds: Mapping[str, Kind]
    """By piece what the comparison says."""
    blocks: bool
    """Runs are refused until `fs repair`; else the next run settles it."""
    pushes: type[FeatureStoreError] | None
    training: type[FeatureStoreError] | bool
    """What a training set raises; True: it warns, False: it does not."""
    after: Mapping[int, int | None]
    """Each driver's count once it is settled, online and offline."""


UNKNOWN: dict[str, Kind] = {"offline": "unknown_revision", "online": "unknown_revision"}
CASES: dict[str, tuple[Break, Case]] = {
    "registry older": (
        older("registry"),
        Case(UNKNOWN, True, MismatchError, True, BEFORE),
    ),
    "registry lost, applied anew": (
        lost("registry"),
        Case({"offline": "other_project", "online": "other_project"}, True, MismatchError, True, BEFORE),
    ),
    "registry of another project": (
        another("registry"),
        Case({"offline": "other_project", "online": "other_project"}, True, MismatchError, MismatchError, BEFORE),
    ),
    "registry restored and applied": (
        rewritten("registry"),
        Case(UNKNOWN, True, MismatchError, True, BEFORE),
    ),
    "offline older": (
        older("offline"),
        Case({"offline": "behind", "online": "ahead"}, True, MismatchError, MismatchError, {**BEFORE, 5: None}),
    ),
    "offline lost": (
        lost("offline"),
        Case({"offline": "lost", "online": "ahead"}, True, MismatchError, MismatchError, {**BEFORE, 4: None, 5: None}),
    ),
    "offline of another project": (
        another("offline"),
        Case(
            {"offline": "other_project", "online": "ahead"},
            True,
            MismatchError,
            MismatchError,
            {**BEFORE, 4: None, 5: None, 6: 6000},  # the table decides rows, once it is said to be the right one
        ),
    ),
    "offline restored and written": (
        rewritten("offline"),
        Case(
            {"offline": "unknown_revision", "online": "ahead"},
            True,
            MismatchError,
            MismatchError,
            {**BEFORE, 5: None, 7: 70},
        ),
    ),
    "online older": (
        older("online"),
        Case({"online": "behind"}, False, None, False, BEFORE),
    ),
    "online lost": (
        lost("online"),
        Case({"online": "missing"}, False, None, False, BEFORE),
    ),
    "online of another project": (
        another("online"),
        Case({"online": "other_project"}, True, MismatchError, False, BEFORE),
    ),
    "online restored and written": (
        rewritten("online"),
        Case({"online": "unknown_revision"}, True, MismatchError, False, BEFORE),
    ),
}


@pytest.fixture(params=["lmdb", "redis"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, lived: Lives, monkeypatch: pytest.MonkeyPatch
) -> tuple[Project, Path]:
    """A project that has lived a little, and a backup from the middle of its life."""
    # The package has a function of that name.
    monkeypatch.setattr(importlib.import_module("featurestore.consistency.moments"), "MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    return lived(tmp_path / "lives" / "project", url)


ON_REDIS = [
    name for name in CASES if name.startswith("online") or name in ("registry of another project", "offline older")
]
"""What breaks the online store, and of each other piece one case: what is online is then taken over, or goes."""
BROKEN = pytest.mark.parametrize(
    ("world", "broken"), [("lmdb", name) for name in CASES] + [("redis", name) for name in ON_REDIS], indirect=True
)
EMBEDDED = pytest.mark.parametrize("world", ["lmdb"], indirect=True)
"""For what concerns the registry and the offline store alone."""


@pytest.fixture
def broken(request: pytest.FixtureRequest, world: tuple[Project, Path], tmp_path: Path) -> tuple[Project, Case]:
    """A project with one piece that does not fit."""
    (project, backup), (breaks, case) = world, CASES[request.param]
    breaks(project, backup, tmp_path / "place")
    return project, case


def fs(project: Project, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--repo", str(project.root)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert isinstance(caught.value.code, int)
    return caught.value.code, out + err


def content(project: Project) -> dict[str, Any]:
    """Return every file of the offline store and every online record: what only repairs and runs may change."""
    folder = project.root / "data/offline"
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_staging" not in path.parts
    }
    with project.open() as store:
        pairs = dict(pair for batch in store.workspace.online.scan(b"fs:shop:") for pair in batch)
    return {"files": files, "records": pairs}


def training(project: Project) -> list[int | None]:
    frame = pa.table({"driver": [1, 2, 3, 4], "event_timestamp": [day(20)] * 4})
    with project.open() as store:
        made = store.get_historical_features(frame, ["stats:count"])
        counts = list(made.to_arrow()["count"].to_pylist())
        assert made.certificate.rows == 4
        return counts


@BROKEN
@pytest.mark.uncounted
def test_it_is_said_left_alone_and_settled(broken: tuple[Project, Case], capsys: pytest.CaptureFixture[str]) -> None:
    project, case = broken
    found = {mismatch.piece: mismatch for mismatch in project.mismatches()}
    assert {piece: mismatch.kind for piece, mismatch in found.items()} == case.kinds
    assert all(mismatch.heals is not case.blocks for mismatch in found.values())
    before = content(project)

    # Whoever looks says it, and changes nothing.
    for command, code in (("doctor", int(case.blocks)), ("verify", 1), ("status", 0), ("plan", 0)):
        got, said = fs(project, capsys, command)
        told = [mismatch for mismatch in found.values() if command != "plan" or mismatch.piece == "offline"]
        missing = [mismatch.message for mismatch in told if mismatch.message not in said.replace("\n", " ")]
        assert (got, missing) == (code, []), said
    assert content(project) == before

    # Garbage is only what this registry gave up: nothing of this.
    code, said = fs(project, capsys, "gc")
    assert (code, "0 online keys removed" in said) == (0, True), said
    assert content(project)["records"] == before["records"]
    assert content(project)["files"].keys() >= before["files"].keys()

    if isinstance(case.training, bool):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            training(project)
        messages = {str(warning.message) for warning in warned if warning.category is TrainingSetWarning}
        assert (found["offline"].message in messages if "offline" in found else False) is case.training
    else:
        with pytest.raises(case.training):
            training(project)

    if not case.blocks:
        assert fs(project, capsys, "materialize")[0] == 0
    else:
        code, said = fs(project, capsys, "materialize")
        assert code == 1
        assert "`fs repair`" in said
        assert content(project)["records"] == before["records"]
        code, said = fs(project, capsys, "repair", "--dry-run")
        assert (code, "nothing was changed" in said) == (0, True)
        assert content(project)["records"] == before["records"]
        assert fs(project, capsys, "repair", "--yes")[0] == 0
    assert project.mismatches() == []
    assert project.online() == project.offline() == case.after
    assert fs(project, capsys, "verify")[0] == 0
    assert fs(project, capsys, "repair") == (0, "Registry and stores belong together.\n")

    # And life goes on.
    project.source([(2, 6, 21)])
    assert fs(project, capsys, "materialize")[0] == 0
    project.push(6, 7, 60)
    assert project.online() == project.offline() == {**case.after, 2: 21, 6: 60}
    assert fs(project, capsys, "verify")[0] == 0
    assert training(project)[:3] == [11, 21, 30]


@BROKEN
@pytest.mark.uncounted
def test_what_comes_in_between_hides_nothing(broken: tuple[Project, Case], capsys: pytest.CaptureFixture[str]) -> None:
    """A push and a run right after the accident: refused, or right, and the mismatch is still seen."""
    project, case = broken
    if case.pushes is None:
        project.push(7, 8, 70)
        assert fs(project, capsys, "materialize")[0] == 0
        assert project.online() == project.offline() == {**case.after, 7: 70}
        assert project.mismatches() == []
        return
    before = content(project)
    for _ in range(3):
        with pytest.raises(case.pushes):
            project.push(7, 8, 70)
        with pytest.raises(MaterializationError):
            project.run()
    assert content(project)["records"] == before["records"]
    assert {mismatch.piece: mismatch.kind for mismatch in project.mismatches()} == case.kinds
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    project.push(7, 8, 71)
    assert project.online() == project.offline() == {**case.after, 7: 71}


@pytest.mark.parametrize("to", ["both", "online"])
def test_a_push_that_was_refused_is_refused_again_at_once(
    world: tuple[Project, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Literal["both", "online"]
) -> None:
    """What was checked a moment ago is not checked again; a check that failed is."""
    project, backup = world
    another("online")(project, backup, tmp_path / "place")
    monkeypatch.setattr(importlib.import_module("featurestore.consistency.moments"), "MOMENT_SECONDS", 3600.0)
    rows = {"driver": [7], "at": [day(8)], "count": [70], "stars": [1]}
    with project.open() as store:
        for _ in range(3):
            with pytest.raises(MismatchError):
                store.push("trips", rows, to=to)
    assert project.online([7]) == {7: None}


@BROKEN
@pytest.mark.uncounted
def test_nothing_that_deletes_passes(broken: tuple[Project, Case], capsys: pytest.CaptureFixture[str]) -> None:
    """Teardown, an apply that deletes the view, and optimize touch nothing that bears another identity."""
    project, case = broken
    if not case.blocks:
        assert fs(project, capsys, "teardown", "--allow-destroy")[0] == 0
        return
    before = content(project)
    (project.root / "features.py").write_text("")
    foreign = {piece for piece, kind in case.kinds.items() if kind in ("other_project", "unknown_revision")}
    if foreign:
        for command in (("teardown", "--allow-destroy"), ("apply", "--yes", "--allow-destroy", "--allow-breaking")):
            code, said = fs(project, capsys, *command)
            assert (code, "cannot be deleted" in said) == (1, True), said
    if "offline" in case.kinds:
        assert fs(project, capsys, "optimize")[0] == 1
    after = content(project)
    assert after["records"] == before["records"]
    assert after["files"].keys() >= before["files"].keys()


@EMBEDDED
def test_an_absent_registry_deletes_nothing(
    world: tuple[Project, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = world
    before = content(project)
    monkeypatch.setenv("FS_REGISTRY", "sqlite:///data/mistyped.db")
    for command in (("gc",), ("gc", "--dry-run"), ("optimize",), ("repair", "--yes"), ("teardown", "--allow-destroy")):
        code, said = fs(project, capsys, *command)
        assert (code, "does not know project 'shop'" in said) == (1, True), (command, said)
    assert not (project.root / "data/mistyped.db").exists()
    monkeypatch.delenv("FS_REGISTRY")
    assert content(project) == before


@pytest.mark.uncounted
@EMBEDDED
def test_a_registry_of_before_a_breaking_apply_keeps_the_later_generation(
    world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows are listed and kept; the number is not given again, so nothing of the lost one comes alive."""
    project, backup = world
    text = (project.root / "features.py").read_text()
    narrower = text.replace(', Field("stars", Int64)', "")
    (project.root / "features.py").write_text(narrower)
    with project.open() as store:
        store.apply(allow_breaking=True)
        store.materialize_incremental()
        store.push("trips", {"driver": [6], "at": [day(5)], "count": [600]})
    assert project.online()[6] == 600
    project.restore(backup, "registry")
    (project.root / "features.py").write_text(text)
    code, said = fs(project, capsys, "gc")
    assert code == 0
    assert "offline table shop/stats/2 kept: this registry never had it" in said
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    (project.root / "features.py").write_text(narrower)
    with project.open() as store:
        store.apply(allow_breaking=True)
        assert store.workspace.snapshot().views["stats"].generation == 3
    assert project.online()[6] is None
    with project.open() as store:
        store.materialize_incremental()
    assert project.online() == project.offline()
    # Once this registry has come past it, it is this registry's to give up.
    assert "shop/stats/2" in fs(project, capsys, "gc")[1]


def test_a_table_restored_to_just_before_a_push_is_named(
    world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ledger knows of no push: what is online says that the table lacks one."""
    project, _ = world
    project.back_up(tmp_path / "before", ["offline"])
    project.push(6, 8, 60)
    project.restore(tmp_path / "before", "offline")
    file = project.root / "data/offline/shop/stats/1/later.parquet"
    file.touch()  # of a log that may still come back
    assert project.kinds() == {("online", "ahead")}
    for command in ("materialize", "optimize"):
        code, said = fs(project, capsys, command)
        assert (code, "Rows were pushed to shop/stats/1 in version" in said) == (1, True)
    assert "unneeded files of offline table shop/stats/1 kept: the view's current" in fs(project, capsys, "gc")[1]
    assert file.exists()
    with pytest.raises(MismatchError, match="Rows were pushed"):
        project.push(7, 9, 70)
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    assert project.online() == project.offline() == BEFORE
    assert "kept" not in fs(project, capsys, "gc")[1]
    assert not file.exists()
    project.push(6, 8, 61)  # whoever pushed it may push it again
    assert project.online() == project.offline() == {**BEFORE, 6: 61}


def test_a_push_whose_commit_cannot_be_noted_online_costs_nothing(
    world: tuple[Project, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = world

    def broken(*_: object) -> None:
        raise RuntimeError("the store was closed meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr("featurestore.online.records.marker.PartMarkers.note_pushed", broken)
        for count in range(3):  # the same committer
            project.push(6, 8 + count, count)
    assert project.online()[6] == 2
    assert project.mismatches() == []


@EMBEDDED
def test_a_saved_set_that_the_registry_forgot_is_kept_and_registered_again(
    world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project, backup = world
    frame = pa.table({"driver": [1, 2, 3], "event_timestamp": [day(20)] * 3})
    with project.open() as store:
        saved = store.get_historical_features(frame, ["stats:count"]).save("kept").to_arrow()
    project.source([(2, 6, 22)])
    project.run()
    project.restore(backup, "registry")
    assert "training set kept kept: this registry does not know it" in fs(project, capsys, "gc")[1]
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    with project.open() as store:
        optimize(store.workspace)
        collect_garbage(store.workspace)
        assert store.get_training_set("kept").to_arrow().equals(saved)


@EMBEDDED
def test_optimize_honours_a_set_that_the_registry_forgot(world: tuple[Project, Path]) -> None:
    """The registry is only as old as the last run: nothing else tells that it lacks the set."""
    project, _ = world
    frame = pa.table({"driver": [1, 2, 3], "event_timestamp": [day(20)] * 3})
    project.back_up(project.root.parent / "early", ["registry"])
    with project.open() as store:
        saved = store.get_historical_features(frame, ["stats:count"]).save("kept").to_arrow()
    project.restore(project.root.parent / "early", "registry")
    assert project.mismatches() == []
    project.source([(2, 6, 22)])
    project.run()
    with project.open() as store:
        optimize(store.workspace)
        collect_garbage(store.workspace)
        with pytest.raises(NotFoundError):
            store.get_training_set("kept")
        repair(store.workspace, find_repairs(store.workspace))
        assert store.get_training_set("kept").to_arrow().equals(saved)


@EMBEDDED
def test_a_saved_set_of_a_rewritten_version_is_refused_by_name(world: tuple[Project, Path], tmp_path: Path) -> None:
    project, backup = world
    frame = pa.table({"driver": [1, 2, 3], "event_timestamp": [day(20)] * 3})
    with project.open() as store:
        store.get_historical_features(frame, ["stats:count"]).save("first")
    document = next((project.root / "data/offline/shop/_training_sets").glob("*.json"))
    frames = document.parent
    shutil.copytree(frames, tmp_path / "frames")
    rewritten("offline")(project, backup, tmp_path / "place")
    shutil.copytree(tmp_path / "frames", frames, dirs_exist_ok=True)
    project.push_until(4)
    with project.open() as store, pytest.raises(FeatureStoreError, match="not the commit that training set 'first'"):
        store.get_training_set("first")


@EMBEDDED
def test_long_lived_stores_notice_another_content_of_the_same_revision(
    world: tuple[Project, Path], tmp_path: Path
) -> None:
    project, backup = world
    with FeatureStore(project.root) as store:
        before = store.workspace.snapshot()
        rewritten("registry")(project, backup, tmp_path / "place")
        after = store.workspace.snapshot()
    assert (before.revision, after.revision) == (2, 2)
    assert [found.registered("stats").view.description for found in (before, after)] == ["second", "another way"]


@EMBEDDED
def test_a_plan_of_before_a_restore_does_not_pass(world: tuple[Project, Path], tmp_path: Path) -> None:
    project, backup = world
    project.declare("third")
    with FeatureStore(project.root) as store:
        plan = store.plan()
        rewritten("registry")(project, backup, tmp_path / "place")
        assert store.workspace.registry.definitions.head("shop") == plan.revision
        with pytest.raises(FeatureStoreError, match="not in its history"):
            store.apply_plan(plan)


def test_an_unfinished_repair_is_finished_by_the_next(
    world: tuple[Project, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The online part was taken over, and the process died: its records that the table lacks still go."""
    project, backup = world
    project.restore(backup, "offline")
    with monkeypatch.context() as patch, project.open() as store:
        patch.setattr("featurestore.repair._read_again", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            repair(store.workspace, find_repairs(store.workspace))
    assert project.online()[5] == 50
    assert fs(project, capsys, "materialize")[0] == 0
    assert project.online() == project.offline() == {**BEFORE, 5: None}


@pytest.fixture
def cluster_world(tmp_path: Path, lived: Lives, redis_cluster_url: str) -> tuple[Project, Path]:
    return lived(tmp_path / "project", redis_cluster_url)


@pytest.mark.uncounted
@pytest.mark.parametrize("name", ["offline older", "online lost", "online of another project", "registry older"])
def test_on_a_cluster(
    cluster_world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    project, backup = cluster_world
    breaks, case = CASES[name]
    breaks(project, backup, tmp_path / "place")
    assert {mismatch.piece: mismatch.kind for mismatch in project.mismatches()} == case.kinds
    if case.blocks:
        assert fs(project, capsys, "materialize")[0] == 1
        assert fs(project, capsys, "repair", "--yes")[0] == 0
    else:
        assert fs(project, capsys, "materialize")[0] == 0
    assert project.online() == project.offline() == case.after
    with project.open() as store:
        assert [view.problems for view in verify(store.workspace)] == [()]


@pytest.mark.uncounted
def test_a_primary_that_lost_writes_is_noticed_and_brought_up(
    cluster_world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One primary of three forgets everything, copies of markers included: the run publishes again."""
    project, _ = cluster_world
    project.flush_one_primary()
    assert project.kinds() == {("online", "missing")}
    assert fs(project, capsys, "materialize")[0] == 0
    assert project.online() == project.offline() == BEFORE
    assert project.mismatches() == []


def test_an_online_store_from_before_the_log_was_cleaned_is_reconciled_unasked(
    world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blue store comes back after the log's entry that it was published from is gone: older, not ahead."""
    project, _ = world
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(archive, "KEPT_CHECKPOINTS", 1)
    monkeypatch.setattr(archive, "SETTLED_SECONDS", 0.0)
    project.back_up(tmp_path / "blue", ["online"])
    project.back_up(tmp_path / "early", ["registry"])
    for number in range(4):
        project.source([(1, 6 + number, 100 + number)])
        project.run()
    project.push(5, 12, 51)
    project.run()
    with project.open() as store:
        optimize(store.workspace)
        table = store.workspace.snapshot().registered("stats").table
        assert store.workspace.offline.find_commit(table, 2) is None
    assert project.mismatches() == []
    project.restore(tmp_path / "blue", "online")
    (mismatch,) = project.mismatches()
    assert (mismatch.kind, mismatch.heals) == ("behind", True)
    assert "cleaned away" in mismatch.message
    assert project.online()[1] == 11
    assert fs(project, capsys, "materialize")[0] == 0
    assert project.online() == project.offline() == {**BEFORE, 1: 103, 5: 51}
    # And a registry that remembers a commit whose entry is gone.
    project.restore(tmp_path / "early", "registry")
    assert project.mismatches() == []
    assert fs(project, capsys, "materialize")[0] == 0
    assert fs(project, capsys, "verify")[0] == 0


# What a repair must not do, and what it must not forget.


def test_rows_of_a_generation_that_was_given_up_never_come_back(
    world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project, _ = world
    text = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(text.replace(', Field("stars", Int64)', ""))
    with project.open() as store:
        store.apply(allow_breaking=True)
    project.run()
    shutil.rmtree(project.root / "data/offline/shop/stats/2")
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    assert project.online() == project.offline() == {**BEFORE, 4: None, 5: None}  # pushed to the first generation alone


@EMBEDDED
def test_a_generation_between_two_of_ours_may_be_anothers(
    world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """As an earlier release left it: its tables do not say by which revision they were written."""
    project, backup = world
    project.restore(backup, "registry")
    table = TableId("shop", "stats", 2)
    with project.open() as store:
        workspace = store.workspace
        repair(workspace, find_repairs(workspace))
        schema = workspace.snapshot().registered("stats").table_schema
        source = workspace.offline.current(TableId("shop", "stats", 1))
        assert source is not None
        path = workspace.offline.staging(table) / "rows.parquet"
        shutil.copy(source.files[0].path, path)
        workspace.offline.commit(table, schema, base=None, add=[path])
    text = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(text.replace(', Field("stars", Int64)', ""))
    with project.open() as store:
        store.apply(allow_breaking=True)
        assert store.workspace.snapshot().registered("stats").generation == 3
    project.run()
    said = fs(project, capsys, "gc")[1]
    assert "offline table shop/stats/2 kept: this registry never had it" in said
    assert "offline table shop/stats/1 kept: servers may read this generation until" in said
    with FeatureStore(project.root, clock=ManualClock(system_clock() + 60_000_000)) as later:
        assert [str(removed) for removed in collect_garbage(later.workspace).tables] == ["shop/stats/1"]


@EMBEDDED
def test_a_watermark_that_is_ahead_of_the_remembered_commit_counts(
    world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an earlier release leaves it that ran beside this one."""
    project, _ = world
    project.back_up(tmp_path / "before", ["offline"])
    project.source([(2, 6, 21)])
    with project.open() as store:
        registered = store.workspace.snapshot().registered("stats")
        known = known_commit(store.workspace.ledger, registered)
        store.materialize_incremental()
        remember_commit(store.workspace.ledger, registered, known)
    project.lose("online")
    project.restore(tmp_path / "before", "offline")
    assert ("offline", "behind") in project.kinds()
    assert fs(project, capsys, "materialize")[0] == 1


def test_without_a_table_what_is_online_goes(world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A view that was only pushed to, and whose source is away: there is no row of it any more."""
    project, _ = world
    project.lose("offline")
    (project.root / "trips.parquet").unlink()
    code, said = fs(project, capsys, "repair", "--yes")
    assert (code, "Verified" in said) == (1, False), said
    assert project.online()[1] == 11  # nothing is thrown away while the source cannot be read
    project.rows = {name: [] for name in project.rows}
    project.source([(1, 1, 12)])
    code, said = fs(project, capsys, "repair", "--yes")
    assert (code, "An earlier repair of stats was cut off" in said) == (0, True), said
    assert project.online() == project.offline() == {**dict.fromkeys(BEFORE, None), 1: 12}


@pytest.mark.uncounted
def test_a_repair_whose_source_is_away_reads_its_spans_again_later(
    world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project, backup = world
    project.restore(backup, "offline")
    (project.root / "trips.parquet").rename(project.root / "trips.away")
    code, said = fs(project, capsys, "repair", "--yes")
    assert (code, "Verified" in said) == (1, False), said
    (project.root / "trips.away").rename(project.root / "trips.parquet")
    assert "was cut off" in fs(project, capsys, "repair", "--dry-run")[1]
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    assert project.online() == project.offline() == {**BEFORE, 5: None}
    assert fs(project, capsys, "repair") == (0, "Registry and stores belong together.\n")


def test_a_published_version_that_the_table_lost_is_no_dead_end(
    world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A push was published, and its commit is gone with the online store that named it."""
    project, _ = world
    project.run()
    project.back_up(tmp_path / "before", ["offline"])
    project.push(6, 8, 60)
    with project.open() as store:
        republish(store.workspace)
    project.restore(tmp_path / "before", "offline")
    project.lose("online")
    assert fs(project, capsys, "materialize")[0] == 0
    assert project.online() == project.offline() == BEFORE
    assert project.mismatches() == []


def test_a_damaged_marker_is_nobodys(world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]) -> None:
    project, _ = world
    with project.open() as store:
        online = store.workspace.online
        (key,) = (key for batch in online.scan(b"fs:shop:stats:marker") for key, _ in batch)
        if isinstance(online, LmdbStore):
            with online._transaction(write=True) as transaction:
                found = transaction.get(key)
                transaction.put(key, found[:-1] + bytes([found[-1] ^ 1]))
        else:
            online.put(key, b"\x00no marker")
    assert project.kinds() == {("online", "other_project")}
    assert fs(project, capsys, "materialize")[0] == 1
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    assert project.online() == project.offline() == BEFORE


def test_a_repair_with_the_online_store_down_says_so(
    tmp_path: Path, lived: Lives, start_redis: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_redis()
    project, _ = lived(tmp_path / "project", server.url)
    server.stop()
    settings = project.root / "feature_store.yaml"
    settings.write_text(settings.read_text().replace("read_timeout_ms", "write_timeout_ms: 500, read_timeout_ms"))
    code, said = fs(project, capsys, "repair", "--yes")
    assert (code, "Redis" in said) == (1, True), said
    assert "could not say whose its records are" in fs(project, capsys, "doctor")[1]


@EMBEDDED
def test_every_commit_says_what_its_table_holds(world: tuple[Project, Path]) -> None:
    """Also that it holds nothing of the source: else each look at a table that is only pushed to walks its log."""
    project, _ = world
    with project.open() as store:
        table = store.workspace.snapshot().registered("stats").table
        facts = [store.workspace.offline.find_commit(table, number).facts for number in range(4)]
    assert all(WATERMARK in each for each in facts)
    fresh = Project(project.root.parent / "fresh", None)
    fresh.source([(1, 1, 1)])
    fresh.apply("fresh")
    fresh.push(1, 2, 3)
    with fresh.open() as store:
        commit = store.workspace.offline.find_commit(store.workspace.snapshot().registered("stats").table)
        assert commit is not None
        assert commit.facts[WATERMARK] is None


def test_a_project_whose_registry_was_lost_can_be_torn_down_after_the_repair(
    world: tuple[Project, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was taken over, earlier generations included, is this registry's to give up."""
    project, _ = world
    project.lose("registry")
    project.apply("anew")
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    said = fs(project, capsys, "gc")[1]
    assert "offline table shop/stats/1 removed" in said
    assert "kept" not in said
    assert project.online() == project.offline() == BEFORE
    assert fs(project, capsys, "teardown", "--allow-destroy")[0] == 0
    assert content(project)["records"] == {}


def test_a_later_generation_tells_that_the_registry_is_older(
    world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project, _ = world
    project.back_up(tmp_path / "before", ["registry"])
    text = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(text.replace(', Field("stars", Int64)', ""))
    with project.open() as store:
        store.apply(allow_breaking=True)
    project.run()
    project.restore(tmp_path / "before", "registry")
    (project.root / "features.py").write_text(text)
    assert project.kinds() == {("offline", "unknown_revision")}
    assert "There is a later table of stats, shop/stats/2" in fs(project, capsys, "doctor")[1]
    assert fs(project, capsys, "materialize")[0] == 1
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    assert project.mismatches() == []
    assert project.online() == project.offline() == BEFORE


@pytest.mark.uncounted
def test_another_projects_records_of_an_earlier_generation_are_seen(
    world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project, _ = world
    text = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(text.replace(', Field("stars", Int64)', ""))
    with project.open() as store:
        store.apply(allow_breaking=True)
    project.run()
    project.back_up(tmp_path / "own")
    for each in PIECES:
        project.lose(each)
    other = Project(tmp_path / "other", project.online_url)
    other.source([(1, 1, 1000)])
    other.apply("of another")
    other.run()
    other.back_up(tmp_path / "others", ["online"])
    for each in PIECES:
        project.restore(tmp_path / ("others" if each == "online" else "own"), each)
    assert project.kinds() == {("online", "other_project")}
    before = content(project)["records"]
    assert fs(project, capsys, "materialize")[0] == 1
    assert content(project)["records"] == before
    assert fs(project, capsys, "repair", "--yes")[0] == 0
    assert project.online() == project.offline()


@pytest.mark.uncounted
@EMBEDDED
def test_saved_sets_whose_version_is_gone_stop_nothing_and_are_named(
    world: tuple[Project, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project, _ = world
    project.back_up(tmp_path / "before", ["offline"])
    project.push(6, 8, 60)
    frame = pa.table({"driver": [1, 6], "event_timestamp": [day(20)] * 2})
    with project.open() as store:
        store.get_historical_features(frame, ["stats:count"]).save("kept")
    project.restore(tmp_path / "before", "offline")
    assert fs(project, capsys, "repair", "--yes")[0] == 1  # what cannot be recovered
    for command, code in (("gc", 0), ("optimize", 0), ("verify", 1)):
        got, said = fs(project, capsys, command)
        assert got == code, said
        assert command == "optimize" or "kept" in said
    assert fs(project, capsys, "training-sets", "--delete", "kept", "--yes")[0] == 0
    assert fs(project, capsys, "verify")[0] == 0
