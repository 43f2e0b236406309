"""The catalog: 500 views of 10 features each. Search beside its bare SQL query, and every kind of page."""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import httpx
from featurestore_registry.catalog.search import Index, entries_of, search
from featurestore_registry.catalog.site import Site
from featurestore_registry.documents import (
    EDGES,
    QUANTILES,
    RUN,
    RUN_START,
    STATISTICS,
    WATERMARK,
    BinsDocument,
    ColumnStatistics,
    EdgesDocument,
    RunDocument,
    StatisticsDocument,
    WatermarkDocument,
)
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change
from featurestore_registry.sql import open_registry

from benchmarks.context import Context
from benchmarks.pairs import measure, timed
from benchmarks.report import Row, Section, Target
from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource
from featurestore.definitions import Definition
from featurestore.registered.records import to_record
from featurestore.types import Float64, Int64
from featurestore.types.times import system_clock
from tests.support.catalog_server import serving_catalog

PROJECT = "big"
VIEWS, FEATURES, RUNS = 500, 10, 30
WORDS = ("delay", "fare", "rating", "distance", "speed", "score", "count", "age", "price", "load")
QUERY, WORDS_ASKED = "rating", ("rating", "units", "gold", "nowhere")
CALLS, REQUESTS = 20, 15
WIDE = 2_000
"""Features of one more view."""


def run(context: Context) -> Iterator[Section]:
    """Measure in one process, and over HTTP on loopback."""
    views = 20 if context.is_quick else VIEWS
    with open_registry(f"sqlite:///{context.place('catalog')}/registry.db") as registry:
        fill(registry, views, runs=2 if context.is_quick else RUNS)
        yield _search(context, registry, views)
        yield _pages(registry, views, 1 if context.is_quick else REQUESTS)


def definitions(views: int) -> list[Definition]:
    """Return views with descriptions, owners and tags, one of many features, and services that read them."""
    entity, source = Entity("driver", join_keys={"driver_id": Int64}), ParquetSource("trips", "trips.parquet", "at")
    made = [
        FeatureView(
            f"driver_{WORDS[number % len(WORDS)]}_{number}",
            entities=[entity],
            source=source,
            schema=[
                Field(f"{word}_{number}_{at}", Float64, description=f"the driver's {word} as last seen, in units")
                for at, word in enumerate(WORDS[:FEATURES])
            ],
            description=f"What is known of drivers, part {number}",
            owner=f"team-{number % 12}",
            tags={"tier": ("gold", "silver")[number % 2], "domain": f"d{number % 7}"},
        )
        for number in range(views)
    ]
    wide = FeatureView(
        "wide", entities=[entity], source=source, schema=[Field(f"w{number}", Float64) for number in range(WIDE)]
    )
    services = [
        FeatureService(f"model_{number}", features=made[number * 5 : number * 5 + 5]) for number in range(views // 5)
    ]
    return [entity, source, wide, *made, *services]


def fill(registry: Registry, views: int, runs: int = RUNS) -> None:
    """Apply the definitions, and write a run and statistics of each view; of the first and the wide one many."""
    records = [to_record(PROJECT, each) for each in definitions(views)]
    told = {"author": "ada", "commit": ""}
    changes = [Change("put", each.kind, each.name, each) for each in records]
    chain = registry.definitions.apply(PROJECT, "", changes, message="", **told)
    for number in range(20):  # a history
        changed = [replace(each, description=f"version {number}") for each in records[3 + number : 33 + number]]
        changes = [Change("put", each.kind, each.name, each) for each in changed]
        chain = registry.definitions.apply(PROJECT, chain.head, changes, message=f"change {number}", **told)
    now_us = system_clock()
    for record in records:
        if record.kind == "feature_view":
            names = [field.name for field in record.fields]
            for number in range(runs if record.name in ("wide", records[3].name) else 1):
                _write(registry, record.name, names, now_us - (RUNS - number) * 60_000_000, number)


def _write(registry: Registry, view: str, names: list[str], at_us: int, number: int) -> None:
    ledger, key = registry.ledger, f"{view}.1"
    run = RunDocument(f"{view}-{number}", view, 1, "incremental", "done", at_us, "worker", 1, read=1_000, appended=900)
    ledger.append(PROJECT, RUN_START, view, asdict(replace(run, state="running")))
    ledger.append(PROJECT, RUN, view, asdict(replace(run, duration_ms=700)))
    mark = asdict(
        WatermarkDocument(intervals=((0, at_us),), table_version=1, greatest_event_us=at_us, offline_rows=900)
    )
    ledger.append(PROJECT, WATERMARK, key, mark)
    edges = tuple(float(each) for each in range(21))
    one = ColumnStatistics(
        "", "Float64", rows=900, distinct=500, minimum=0.25, maximum=19.75, mean=9.5, deviation=2.25, bins=1,
        quantiles=tuple(20 * share for share in QUANTILES), in_bins=(0, *range(30, 50), 0),
    )  # fmt: skip
    columns = tuple(replace(one, name=name, nulls=at % 90) for at, name in enumerate(names))
    ledger.append(PROJECT, STATISTICS, key, asdict(StatisticsDocument(at_us, 900, 900, columns, run.run_id)))
    if number == 0:
        bins = {name: BinsDocument(edges=edges, rows=900) for name in names}
        ledger.append(PROJECT, EDGES, key, asdict(EdgesDocument(bins)))


def _search(context: Context, registry: Registry, views: int) -> Section:
    found = Site(registry).project(PROJECT)
    assert found is not None
    index = Index(entries_of(found[0]))
    table = sqlite3.connect(":memory:")
    table.execute("CREATE TABLE feature (kind, name, view, description, owner, type, tags, columns)")
    rows = [
        (
            *(each.kind, each.name, each.view, each.description, each.owner),
            *(" ".join(part) for part in (each.types, each.tags, each.columns)),
        )
        for each in index.entries
    ]
    table.executemany("INSERT INTO feature VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    like = " OR ".join(f"{column} LIKE ?1" for column in ("name", "description", "owner", "type", "tags", "columns"))

    def bare(word: str) -> None:
        table.execute(f"SELECT * FROM feature WHERE {like} ORDER BY name LIMIT 50", (f"%{word}%",)).fetchall()
        table.execute(f"SELECT count(*) FROM feature WHERE {like}", (f"%{word}%",)).fetchall()

    section = Section(
        "The catalog, search",
        f"{views} views, {len(rows):,} entries, in one process. The floor is SQL over a table in memory with the texts "
        "that a search looks through: the first 50 rows with LIKE in any of six columns, by name, and their number. "
        "Ours orders them by where the word stands and counts facets.",
    )
    calls = 3 if context.is_quick else CALLS
    for word in WORDS_ASKED:
        pairs = measure(
            timed(search, [index], word, {}, calls=calls), timed(bare, word, calls=calls), count=context.pairs
        )
        hits = search([index], word, {}).total
        section.rows.append(Row(f"a word that {hits:,} entries hold", "s", pairs, Target(at_most=5)))
    return section


def _pages(registry: Registry, views: int, requests: int) -> Section:
    section = Section(
        "The catalog, pages",
        f"{views} views of {FEATURES} features, 20 revisions, statistics of each view, one view of {WIDE:,} features; "
        f"over HTTP on loopback, the median of {requests} requests, and the page's size. At most 0.1 s and 100 kB are "
        "wanted.",
    )
    first = f"driver_{WORDS[0]}_0"
    with serving_catalog(registry) as url, httpx.Client(base_url=f"{url}/p/{PROJECT}") as client:
        for path in (
            "", f"/search?q={QUERY}", "/search", "/features", "/features?sort=nulls&order=desc&page=7", "/feature_view",
            f"/feature_view/{first}", f"/feature/feature_view/{first}/{WORDS[0]}_0_0", "/feature_view/wide",
            "/feature/feature_view/wide/w7", "/feature_service/model_0", "/entity/driver", "/source/trips",
            "/lineage?of=source:trips&down=3", "/lineage?of=model_0&up=3&columns=1", "/revisions",
            "/revision/21", "/compare/1/21", f"/history/feature_view/{first}", "/training_set", "/consumer", "/audit",
        ):  # fmt: skip
            answer = client.get(path)
            assert answer.status_code == 200, path
            seconds = statistics.median(_seconds(client, path) for _ in range(requests))
            kilobytes = len(answer.content) / 1_000
            verdict = "met" if seconds <= 0.1 and kilobytes <= 100 else "MISSED"
            section.rows.append(Row(path or "home", "s", alone=seconds, note=f"{kilobytes:.0f} kB, {verdict}"))
        section.rows.append(Row("home after an entry in the ledger", "s", alone=_after(registry, client, requests)))
    return section


def _after(registry: Registry, client: httpx.Client, requests: int) -> float:
    """Return the median seconds of the home page when what the ledger says has to be read again."""
    taken = []
    for number in range(requests):
        registry.ledger.append(PROJECT, "other", "x", {"number": number})
        taken.append(_seconds(client, ""))
    return statistics.median(taken)


def _seconds(client: httpx.Client, path: str) -> float:
    start = time.perf_counter()
    client.get(path)
    return time.perf_counter() - start
