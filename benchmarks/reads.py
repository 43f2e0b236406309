"""Online reads in process: ours, to the end of `to_dict()`, beside bare reads of the same keys."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import lmdb
import redis

from benchmarks import floors
from benchmarks.context import Context
from benchmarks.pairs import measure, timed
from benchmarks.projects import make_project, newest_rows, references, requests_of
from benchmarks.report import Row, Section, Target
from benchmarks.workload import WorkloadView
from featurestore import FeatureStore
from featurestore.online.lmdb.store import MAP_BYTES
from featurestore.online.records.encoder import RecordEncoder

ENTITIES = (1, 10, 100)
MOST = {1: 1.5, 10: 1.5, 100: 2.0}
ABOUT = {
    "Redis": "n entities x 2 views, 30 features, to the end of to_dict(); the floor is redis-py's MGET of the same "
    "keys, without decoding.",
    "LMDB": "n entities x 2 views, 30 features, to the end of to_dict(). The floors: bare gets; gets that decode each "
    "record with msgspec; those turned into the same lists by column, by hand and unchecked; redis-py's MGET.",
}
Floor = Callable[[Sequence[bytes]], object]
REQUESTS = 64
"""So many different requests take turns."""


def run(context: Context) -> Iterator[Section]:
    """Measure both stores."""
    workload = context.workload()
    folder = context.place("reads")
    views = newest_rows(workload, folder)
    urls = {"LMDB": "lmdb:///data/online", "Redis": context.redis_url}
    roots = {store: make_project(folder / store, views, online_url=url) for store, url in urls.items()}
    for store, root in roots.items():
        with ExitStack() as opened:
            features = opened.enter_context(FeatureStore(root))
            mget = opened.enter_context(redis.Redis.from_url(context.redis_url)).mget
            section = Section(f"Online reads in process, {store}", ABOUT[store])
            floors_of = [("", mget, True)] if store == "Redis" else _lmdb_floors(root, views, mget, opened)
            for name, floor, has_target in floors_of:
                for entities in ENTITIES:
                    row = measured(context, features, floor, views, entities, name)
                    section.rows.append(replace(row, target=Target(MOST[entities]) if has_target else None))
        yield section


def measured(
    context: Context,
    store: FeatureStore,
    floor: Floor,
    views: Sequence[WorkloadView],
    entities: int,
    name: str,
) -> Row:
    """Measure reads of so many entities beside a floor that is called with their keys."""
    calls = 10 if context.is_quick else max(REQUESTS, 2_000 // entities)
    asked, requests = references(views), requests_of(views, entities, min(REQUESTS, calls))
    layouts = store.workspace.snapshot().views
    encoders = [RecordEncoder(layouts[view.name].layout).keys for view in views]
    keys = [
        [encoder.encode([entity]) for encoder, view in zip(encoders, views, strict=True) for entity in rows[view.key]]
        for rows in requests
    ]
    found = store.get_online_features(asked, requests[0]).to_dict(include_status=True)
    assert set(found[f"{views[0].features[4]}__status"]) == {"PRESENT"}
    ours_turns, floor_turns = itertools.cycle(requests), itertools.cycle(keys)
    pairs = measure(
        timed(lambda: store.get_online_features(asked, next(ours_turns)).to_dict(), calls=calls),
        timed(lambda: floor(next(floor_turns)), calls=calls),
        count=context.pairs,
    )
    return Row(f"{entities} {'entity' if entities == 1 else 'entities'}{name}", "s", pairs)


def _lmdb_floors(
    root: Path, views: Sequence[WorkloadView], mget: Floor, opened: ExitStack
) -> Iterator[tuple[str, Floor, bool]]:
    """Yield a name, what to call with keys, and whether the targets are meant for it."""
    # The same file cannot be open twice in one process.
    copied = shutil.copytree(root / "data" / "online", root / "data" / "floor")
    environment = opened.enter_context(lmdb.open(str(copied), map_size=MAP_BYTES, readonly=True, lock=False))
    yield ", beside bare gets", partial(floors.read_lmdb, environment), True
    yield ", beside gets and decoding", partial(floors.read_and_decode_lmdb, environment), False
    yield ", beside the answer by hand", partial(floors.answer_from_lmdb, environment, views), False
    yield ", beside redis-py's MGET", mget, True
