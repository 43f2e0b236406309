"""A damaged file that only a saved training set still needs is found by `fs verify`, and named with its set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from support.materialized import Sale, day, sales_view, write_sales
from support.projects import make_workspace

from featurestore.errors import DamagedFileError
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize, materialize_incremental, succeeded
from featurestore.offline.interface import DataFile
from featurestore.plan import apply_plan, make_plan
from featurestore.training import get_historical_features, get_training_set
from featurestore.training.saving import delete_training_set
from featurestore.workspace import Workspace

NOW = day(20)
SALES = [Sale(f"shop {n % 7}", day(n / 3), day(n / 3), n) for n in range(40)]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    write_sales(tmp_path / "sales.parquet", SALES)
    made = make_workspace(tmp_path, [sales_view()], now_us=NOW)
    succeeded(materialize_incremental(made))
    yield made
    made.close()


def save(workspace: Workspace, name: str) -> None:
    times = pd.to_datetime([day(number / 2) for number in range(20)], unit="us", utc=True)
    frame = pd.DataFrame({"shop": [f"shop {number % 7}" for number in range(20)], "event_timestamp": times})
    get_historical_features(workspace, frame, "shop_sales:amount", as_of="event").save(name)


def newest_files(workspace: Workspace) -> tuple[DataFile, ...]:
    version = workspace.offline.current(workspace.snapshot().views["shop_sales"].table)
    assert version is not None
    return version.files


def rebuild(workspace: Workspace) -> None:
    write_sales(workspace.root / "sales.parquet", SALES[::2])
    succeeded(materialize(workspace, day(0), NOW, rebuild=True, confirm=lambda *_: True))


def damage(file: DataFile) -> None:
    content = bytearray(Path(file.path).read_bytes())
    content[50] ^= 1
    Path(file.path).write_bytes(content)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_file_of_an_older_version_is_checked_for_the_sets_that_need_it(workspace: Workspace, is_gone: bool) -> None:
    for name in ("first", "second"):
        save(workspace, name)
    (old,) = newest_files(workspace)
    (checked,) = verify(workspace)
    assert (checked.files, checked.problems) == (1, ())  # the newest version's file is the pinned one: it is read once
    rebuild(workspace)
    (new,) = newest_files(workspace)
    (checked,) = verify(workspace)
    assert (checked.files, checked.problems) == (2, ())
    if is_gone:
        Path(old.path).unlink()
    else:
        damage(old)
    (checked,) = verify(workspace)
    assert len(checked.problems) == 2
    for name, problem in zip(("first", "second"), checked.problems, strict=True):
        assert problem.startswith(f"Training set '{name}' cannot be built again: ")
        assert old.path in problem
        assert "--rebuild" not in problem
        assert f"`fs training-sets --delete {name}`" in problem
    damage(new)
    *_, told = verify(workspace)[0].problems if is_gone else sorted(verify(workspace)[0].problems, reverse=True)
    assert new.path in told
    assert "--rebuild" in told


def test_the_read_names_its_set_and_no_rebuild(workspace: Workspace) -> None:
    save(workspace, "first")
    (old,) = newest_files(workspace)
    rebuild(workspace)
    damage(old)
    again = get_training_set(workspace, "first")
    for read in (again.to_arrow, lambda: list(again.batches()), again.head):
        with pytest.raises(DamagedFileError, match="Training set 'first' cannot be built again") as raised:
            read()
        assert raised.value.details["path"] == old.path
        assert "--rebuild" not in raised.value.hint
        assert "Restore the file from a backup" in raised.value.hint
        assert "`fs training-sets --delete first`" in raised.value.hint


def test_a_damaged_entity_frame_is_named_with_its_set(workspace: Workspace) -> None:
    for name in ("first", "second"):
        save(workspace, name)
    (kept,) = (workspace.root / "data/offline/shop/_training_sets").glob("second-*.arrow")
    content = bytearray(kept.read_bytes())
    content[50] ^= 1
    kept.write_bytes(content)
    (problem,) = verify(workspace)[0].problems
    assert f"{kept}, the entity frame of training set 'second', is missing or damaged." in problem
    assert "`fs training-sets --delete second`" in problem
    kept.unlink()
    (problem,) = verify(workspace)[0].problems
    assert "Training set second cannot be built again: its entity frame is gone." in problem


def test_sets_of_a_deleted_view_are_checked_until_they_are_deleted(workspace: Workspace) -> None:
    save(workspace, "first")
    apply_plan(workspace, make_plan(workspace, [], partial=False))
    (checked,) = verify(workspace)
    assert (checked.view, checked.generation, checked.files) == ("shop_sales", 1, 0)
    (problem,) = checked.problems
    assert "Training set first cannot be built again: version 0 of shop/shop_sales/1 is gone" in problem
    delete_training_set(workspace, "first")
    assert verify(workspace) == []
