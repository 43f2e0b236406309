"""The join and its examination against plain loops over rows, on small worlds full of ties and edges."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import VARIANTS
from support.examples import at_most
from support.reference import ReferenceView, reference_join

from featurestore.engine.interface import JoinFacts, ViewJoin
from featurestore.testing.engine_project import instants, log_view, names, write_log
from featurestore.training.reference import ReferenceRow
from featurestore.types import Float64, Int64, String

PLACES = {"city": String, "shop": Int64}
FEATURES = {"amount": Int64, "score": Float64, "added": String}


@dataclass(frozen=True)
class World:
    frame: list[dict[str, Any]]
    joins: tuple[ViewJoin, ...]
    references: tuple[ReferenceView, ...]


@st.composite
def logs(draw: st.DrawFn, keys: st.SearchStrategy[tuple[Any, ...]], base: int) -> list[list[ReferenceRow]]:
    """Return the rows of up to three files: few instants, so that events, created times and both tie often."""
    moments = st.integers(0, 6)
    drafts = draw(
        st.lists(
            st.tuples(
                keys,
                moments,
                st.none() | moments,
                st.none() | st.integers(2**62, 2**63 - 1),
                st.none() | st.sampled_from([0.5, -0.0, float("inf")]),
                st.integers(0, 2),
            ),
            max_size=14,
        )
    )
    sequences = draw(st.permutations(range(len(drafts))))
    files: list[list[ReferenceRow]] = [[], [], []]
    for sequence, (key, event, created, amount, score, file) in zip(sequences, drafts, strict=True):
        # The last file was written before the feature `added` was, the second holds amounts as Int32.
        amount = amount % 2**31 if amount is not None and file == 1 else amount
        values = {"amount": amount, "score": score, "added": None if file == 2 else f"text {sequence}"}
        files[file].append(
            ReferenceRow(key, base + event, None if created is None else base + created, sequence, values)
        )
    return files


@st.composite
def worlds(draw: st.DrawFn, folder: Path) -> World:
    # Before 1970, around it, now; and the ends of what Parquet, Arrow and we call an instant.
    base = draw(st.sampled_from([-2_208_988_800_000_000, -3, 1_700_000_000_000_000]))
    cities, shops = st.sampled_from(["Åre", "b|c", ""]), st.sampled_from([-1, 2**62 + 1])
    frame = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "city": st.none() | cities,
                    "shop": st.none() | shops,
                    "other shop": st.none() | shops,
                    "when": st.integers(base - 1, base + 8),
                }
            ),
            max_size=8,
        )
    )
    frame += draw(st.lists(st.sampled_from(frame), max_size=2)) if frame else []
    specifications: list[tuple[str, dict[str, str], Any]] = [
        ("pair", {"city": "city", "shop": "shop"}, st.tuples(cities, shops)),
        ("own", {"shop": "shop"}, st.tuples(shops)),
        ("renamed", {"shop": "other shop"}, st.tuples(shops)),
    ]
    joins, references = [], []
    for name, columns, keys in specifications[: draw(st.integers(1, 3))]:
        ttl_us = draw(st.none() | st.integers(1, 4))
        as_of = draw(st.sampled_from(["event", "available"]))
        view = log_view(name, {key: PLACES[key] for key in columns}, FEATURES, ttl_us)
        paths = []
        files = draw(logs(keys, base))
        for number, rows in enumerate(files):
            if rows:
                # Writers sort each file; that the result does not depend on it is part of the property.
                laid_out = rows if draw(st.booleans()) else sorted(rows, key=_order)
                types, without = {"amount": pa.int32()} if number == 1 else {}, ("added",) if number == 2 else ()
                path = folder / name / f"{number}.parquet"
                paths.append(write_log(path, view, laid_out, types=types, without=without, row_group_size=3))
        asked = tuple(draw(st.permutations(list(FEATURES))))
        joins.append(ViewJoin(name, view, names(draw(st.permutations(paths))), columns, asked, as_of))
        rows = [row for file in files for row in file]
        references.append(ReferenceView(name, tuple(columns.values()), asked, rows, ttl_us, as_of))
    return World(frame, tuple(joins), tuple(references))


def _order(row: ReferenceRow) -> tuple[int, int, int]:
    return row.event_us, row.created_or_event_us, row.sequence


def frame_table(frame: list[dict[str, Any]]) -> pa.Table:
    kinds = {"city": pa.string(), "shop": pa.int64(), "other shop": pa.int64()}
    columns = {name: pa.array([row[name] for row in frame], kind) for name, kind in kinds.items()}
    return pa.table({**columns, "when": instants(*(row["when"] for row in frame))})


def expected_facts(frame: list[dict[str, Any]], view: ReferenceView) -> JoinFacts:
    answers = [view.answer(tuple(row[column] for column in view.key_columns), row["when"]) for row in frame]
    nulls = Counter(answer for answer in answers if isinstance(answer, str))
    reasons = ("null_key", "no_entity", "nothing_before", "not_yet_available", "expired")
    chosen = [(row["when"], answer) for row, answer in zip(frame, answers, strict=True) if not isinstance(answer, str)]
    return JoinFacts(
        view.name,
        {reason: nulls[reason] for reason in reasons},
        max((when - answer.event_us for when, answer in chosen), default=None),
        0,
    )


@pytest.mark.parametrize("engine", VARIANTS)
@at_most(50)
@given(st.data())
def test_equals_plain_loops(engine: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, data.draw(VARIANTS[engine])(Path(folder)) as project:
        world = data.draw(worlds(Path(folder)))
        table = frame_table(world.frame)
        join = project.join(table, world.joins, batch_rows=3)
        expected = tuple(expected_facts(world.frame, view) for view in world.references)
        assert data.draw(st.booleans()) or join.facts() == expected
        joined = join.batches().read_all()
        assert joined.to_pylist() == reference_join(world.frame, "when", world.references)
        assert join.facts() == expected
        cut = data.draw(st.integers(0, len(table)))
        assert pa.concat_tables(project.joined_stored([table[:cut], table[cut:]], world.joins)).equals(joined)
