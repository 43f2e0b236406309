"""How DuckDB's join chooses rows, against plain loops over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.engine.duck import newest as newest_module
from featurestore.training.reference import ReferenceRow, reference_answer


def _order(row: ReferenceRow) -> tuple[int, int, int]:
    return row.event_us, row.created_or_event_us, row.sequence


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=30).flatmap(
        lambda rows: st.tuples(st.just(rows), st.permutations(range(len(rows))), st.booleans())
    ),
    st.booleans(),
    st.none() | st.integers(1, 5),
    st.sampled_from([12, 2**62]),
)
def test_choosing_equals_plain_loops(
    given_rows: tuple[list[tuple[int, int, int]], list[int], bool],
    available: bool,
    ttl_us: int | None,
    composite_limit: int,
) -> None:
    """Few keys with many rows each, asked at every instant: where the order of availability is far from ours."""
    drafts, sequences, in_order = given_rows
    rows = [
        ReferenceRow((key,), event, created, sequence)
        for (key, event, created), sequence in zip(drafts, sequences, strict=True)
    ]
    rows = sorted(rows, key=_order) if in_order else rows
    asked = [(key, time) for time in (8, *range(-1, 12)) for key in (1, 0, 2)]
    arrays = newest_module.Rows(
        np.array([row.keys[0] for row in rows], np.int32),
        np.array([row.event_us for row in rows]),
        np.array([row.created_or_event_us for row in rows]),
        np.array([row.sequence for row in rows]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newest_module, "COMPOSITE_LIMIT", composite_limit)
        found = newest_module.newest(
            np.array([key for key, _ in asked]),
            np.array([time for _, time in asked]),
            arrays,
            available=available,
            ttl_us=ttl_us,
        )
    expected = [
        reference_answer((key,), time, rows, ttl_us=ttl_us, as_of="available" if available else "event")
        for key, time in asked
    ]
    assert [rows[place].sequence if place >= 0 else None for place in found] == [
        None if isinstance(answer, str) else answer.sequence for answer in expected
    ]
