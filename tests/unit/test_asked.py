"""Which rows of a table are looked at for a certificate: those that can answer, and no others."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from featurestore.training.asked import Asked

REACH_US = 3


def key_columns(rows: list[tuple[int | None, str | None]]) -> list[pa.ChunkedArray]:
    kinds = (pa.int64(), pa.string())
    return [pa.chunked_array([pa.array([row[place] for row in rows], kind)]) for place, kind in enumerate(kinds)]


@pytest.mark.parametrize("reach_us", [REACH_US, None])
def test_rows_that_can_answer_are_found_as_loops_find_them(reach_us: int | None) -> None:
    for seed in range(60):
        dice = random.Random(seed)
        asked = [((dice.choice([1, 2, 3, None]), dice.choice("ab")), dice.randrange(20)) for _ in range(seed // 4)]
        rows = [
            ((dice.choice([1, 2, 4, None]), dice.choice(["a", "b", "c", None])), dice.randrange(25)) for _ in range(40)
        ]
        wanted = [
            place
            for place, (key, event) in enumerate(rows)
            if None not in key
            and any(
                other == key and event <= at and (reach_us is None or at - event <= reach_us) for other, at in asked
            )
        ]
        at_us = np.array([at for _, at in asked], dtype=np.int64)
        oldest_us = np.full(len(asked), -(10**15)) if reach_us is None else at_us - reach_us
        made = Asked(key_columns([key for key, _ in asked]), at_us, oldest_us)
        events = np.array([event for _, event in rows])
        assert made.places(iter(key_columns([key for key, _ in rows])), events).tolist() == wanted
