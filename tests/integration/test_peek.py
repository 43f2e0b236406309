"""The newest rows of a view beside a sort of all rows, and files that are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.materialized import Sale, day, log_rows, sales_view, write_sales
from support.projects import make_workspace

from featurestore.errors import DamagedFileError
from featurestore.maintenance.peek import peek
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

NOW = day(40)
INSTANTS = st.lists(st.integers(0, 12), min_size=1, max_size=4)


def filled(folder: Path, batches: list[list[int]]) -> Workspace:
    """Return a workspace whose log has a file for each batch of instants; amounts tell the rows apart."""
    workspace = make_workspace(folder, [sales_view(created=False)], now_us=NOW)
    sales: list[Sale] = []
    for number, instants in enumerate(batches):
        # Below a millisecond the bounds of a file are not exact.
        new = [Sale(f"shop {number} {place}", day(1) + at * 250, None, at) for place, at in enumerate(instants)]
        sales += new
        write_sales(folder / "sales.parquet", sales)
        succeeded(materialize_incremental(workspace))
    return workspace


@given(batches=st.lists(INSTANTS, min_size=1, max_size=4), rows=st.integers(1, 10))
@settings(max_examples=examples(8), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_shows_the_newest_rows_of_all_files(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], rows: int
) -> None:
    workspace = filled(tmp_path_factory.mktemp("peek"), batches)
    shown = peek(workspace, workspace.snapshot().views["shop_sales"], rows)
    every = sorted((row[1] for row in log_rows(workspace)), reverse=True)
    assert [at.timestamp() * 1_000_000 for at in shown["event_ts"].to_pylist()] == every[:rows]
    assert shown.schema.names == ["shop", "event_ts", "created_ts", "amount", "note"]
    assert [day(1) + row["amount"] * 250 for row in shown.to_pylist()] == every[:rows]
    workspace.close()


def test_damaged_rows_are_not_shown(tmp_path: Path) -> None:
    workspace = filled(tmp_path, [[1, 2], [11, 12]])
    registered = workspace.snapshot().views["shop_sales"]
    version = workspace.offline.current(registered.table)
    assert version is not None
    newest = max(version.files, key=lambda file: file.max_event_us)
    content = bytearray(Path(newest.path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(newest.path).write_bytes(content)
    with pytest.raises(DamagedFileError, match=Path(newest.path).name):
        peek(workspace, registered, 1)
    workspace.close()
