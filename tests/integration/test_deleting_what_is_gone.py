"""Deleting a project after its registry was lost: earlier generations that no store holds any more need no owner."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from support.command_line import CommandLine
from support.pieces import Project

from featurestore.errors import MismatchError
from featurestore.maintenance.gc import collect_garbage
from featurestore.offline.interface import TableId, TableSchema
from featurestore.online.records.keys import view_prefix


def with_a_collected_generation(root: Path, url: str | None) -> Project:
    """Return a project at generation 2 whose first one was removed by `fs gc`."""
    project = Project(root, url)
    project.source([(1, 1, 10), (2, 1, 20)])
    project.apply("first")
    project.run()
    features = root / "features.py"
    features.write_text(features.read_text().replace(', Field("stars", Int64)', ""))
    with project.open() as store:
        store.apply(allow_breaking=True)
        store.materialize_incremental()
        workspace = store.workspace
        now = workspace.clock
        workspace.clock = lambda: now() + timedelta(minutes=5) // timedelta(microseconds=1)
        assert collect_garbage(workspace).tables == (TableId("shop", "stats", 1),)
    return project


def lose_the_registry(project: Project, fs: CommandLine) -> None:
    for lost in project.root.glob("data/registry.db*"):
        lost.unlink()
    fs("apply", "--yes")
    assert "Verified" in fs("repair", "--yes")


@pytest.mark.parametrize("url", ["lmdb", "redis"])
@pytest.mark.parametrize("command", ["teardown", "apply"])
def test_a_generation_that_no_store_holds_any_more_stops_no_deletion(
    tmp_path: Path, url: str, command: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    project = with_a_collected_generation(
        tmp_path / "repo", None if url == "lmdb" else request.getfixturevalue("redis_url")
    )
    fs = CommandLine(project.root, capsys)
    lose_the_registry(project, fs)
    with project.open() as store:
        workspace = store.workspace
        used = [table.generation for table in workspace.offline.tables("shop")]
        assert used == [2, 3]
        assert workspace.offline.last_generation("shop", "stats") == 3
    # A folder that another process just made for the generation, before its first commit.
    staged = project.root / "data/offline/shop/stats/1/staged"
    staged.mkdir(parents=True, exist_ok=True)
    if command == "teardown":
        fs("teardown", "--allow-destroy")
    else:
        features = project.root / "features.py"
        features.write_text(features.read_text().partition("stats =")[0])
        fs("apply", "--allow-breaking", "--allow-destroy", "--yes")
    with project.open() as store:
        assert store.list("feature_view") == []
        assert store.workspace.offline.tables("shop") == []
        assert not list(store.workspace.online.scan(b"fs:shop:"))
    assert staged.is_dir()  # it was never this registry's


@pytest.mark.parametrize("piece", ["offline", "online"])
def test_a_generation_that_was_never_had_and_is_there_stops_it_still(
    tmp_path: Path, piece: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project = with_a_collected_generation(tmp_path / "repo", None)
    lose_the_registry(project, CommandLine(project.root, capsys))
    with project.open() as store:
        workspace = store.workspace
        if piece == "offline":
            workspace.offline.commit(TableId("shop", "stats", 1), TableSchema((), ()), base=None, add=[])
        else:
            workspace.online.put(view_prefix("shop", "stats", 1) + b"leftover", b"of an earlier release")
        with pytest.raises(MismatchError, match="shop/stats/1 cannot be deleted: this registry never had it"):
            store.teardown()
        assert [view.name for view in store.list("feature_view")] == ["stats"]
