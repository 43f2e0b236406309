"""What the catalog's pages are made from: searches, histories, differences, drawings; beside plain loops."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import asdict, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from featurestore_registry.catalog.activity import ViewActivity, activity_of_view
from featurestore_registry.catalog.addresses import project_address
from featurestore_registry.catalog.diffs import differences
from featurestore_registry.catalog.drawing import BARS, histogram, line, spans, value
from featurestore_registry.catalog.history import History, Touch, read_history
from featurestore_registry.catalog.pages.changes import MOST_TEXT, changed_by
from featurestore_registry.catalog.routes import ROUTES, find
from featurestore_registry.catalog.search import PER_PAGE, Entry, Index, marked, search
from featurestore_registry.catalog.site import Newest
from featurestore_registry.catalog.words import age, ago, duration, number, seen, share
from featurestore_registry.documents import BinsDocument, ColumnStatistics, RunDocument, WatermarkDocument
from featurestore_registry.records import Change, Record, RecordField, RevisionInfo
from featurestore_registry.sql import open_registry

HOUR_US = 3_600_000_000
WORDS = ("fare", "rating", "mean_7d", "driver", "Ärger", "x")


def entries(seed: int) -> list[Entry]:
    dice = random.Random(seed)

    def some(count: int) -> tuple[str, ...]:
        return tuple(dice.sample(WORDS, count))

    return [
        Entry(
            dice.choice(("feature_view", "entity")),
            "_".join(some(2)) + str(number % 7),
            dice.choice(("", "v")),
            "feature_view",
            " ".join(some(2)),
            dice.choice(("ada", "Grace", "")),
            some(1),
            tuple(f"{word}=1" for word in some(1)),
            some(1),
        )
        for number in range(130)
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("fare", {}),
        ("RATING driver", {}),
        ("ärger", {"owner": "ada"}),
        ("", {"kind": "entity", "tag": "x=1"}),
        ("zz", {}),
    ],
)
def test_a_search_finds_what_a_loop_over_all_texts_finds(seed: int, query: str, wanted: dict[str, str]) -> None:
    all_entries = entries(seed)
    expected = []
    for entry in all_entries:
        texts = [entry.name, entry.description, entry.owner, *entry.types, *entry.tags, *entry.columns]
        texts += [f"{entry.view}:{entry.name}"] if entry.view else []
        texts.append(entry.kind.replace("_", " "))
        holds = all(any(word in text.casefold() for text in texts) for word in query.casefold().split())
        fits = all(
            value in {"kind": [entry.kind], "owner": [entry.owner], "tag": entry.tags, "type": entry.types}[facet]
            for facet, value in wanted.items()
        )
        if holds and fits:
            expected.append(entry)
    half = len(all_entries) // 2
    indexes = (Index(all_entries[:half]), Index(all_entries[half:]))
    first = search(indexes, query, wanted)
    pages = [search(indexes, query, wanted, page).entries for page in range(1, 4)]
    assert sorted(map(repr, [entry for page in pages for entry in page])) == sorted(map(repr, expected))
    assert (first.total, len(pages[0])) == (len(expected), min(len(expected), PER_PAGE))
    assert dict(first.facets["owner"]) == Counter(entry.owner for entry in expected if entry.owner)
    assert dict(first.facets["tag"]) == Counter(tag for entry in expected for tag in entry.tags)
    if query:  # names that begin with it come before those that hold it, and these before the others
        word = query.casefold().split()[0]
        places = [entry.name.casefold().find(word) for page in pages for entry in page]
        ranks = [1 if place == 0 else 2 if place > 0 else 3 for place in places]
        assert ranks == sorted(ranks)


def test_what_was_found_is_marked_and_nothing_is_lost() -> None:
    text = "A fare (fare+tip) <b>FARE</b>"
    pieces = marked(text, ("fare", "(fare+"))
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, is_hit in pieces if is_hit] == ["fare", "(fare+", "FARE"]


def record(name: str, **document: Any) -> Record:
    return Record("view", "p", name, document, repr(document))


def test_a_history_that_grows_is_the_one_that_is_read_whole(tmp_path: Any) -> None:
    dice = random.Random(4)
    with open_registry(f"sqlite:///{tmp_path}/r.db") as registry:
        known: History | None = None
        live: dict[str, Record] = {}
        told: dict[str, list[tuple[int, str]]] = {}
        for revision in range(1, 25):
            changes = []
            for name in dice.sample("abcdef", dice.randint(1, 3)):
                if name in live and dice.random() < 0.4:
                    changes.append(Change("delete", "view", name))
                    told.setdefault(name, []).insert(0, (revision, "deleted"))
                    del live[name]
                else:
                    what = "changed" if name in live else "created"
                    live[name] = record(name, number=revision)
                    changes.append(Change("put", "view", name, live[name]))
                    told.setdefault(name, []).insert(0, (revision, what))
            chain = registry.definitions.chain("p")
            registry.definitions.apply("p", chain.head, changes, author="", message="", commit="")
            if dice.random() < 0.5:
                hashes = registry.definitions.chain("p").hashes
                known = read_history(registry.definitions, "p", hashes, known)
                fresh = read_history(registry.definitions, "p", hashes, None)
                assert known.applies == fresh.applies
                found = {name: [(t.apply.number, t.what) for t in known.of(f"view:{name}")] for name in told}
                assert found == told
                assert all(t.before == u.after for n in told for t, u in pairs(known.of(f"view:{n}")))
                # A registry that was restored may have other revisions under the same numbers.
                other = History([replace(info, hash="other", author="before") for info in fresh.applies[1:]])
                assert read_history(registry.definitions, "p", hashes, other).applies == fresh.applies


def test_what_was_there_before_the_kept_applies_is_not_called_new() -> None:
    def applied(number: int) -> RevisionInfo:
        change = Change("put", "view", "a", record("a", number=number))
        return RevisionInfo(number, datetime(2026, 1, 1), "", "", "", (change,), f"h{number}")

    for first, what in ((1, "created"), (2, "changed")):
        touches = History([applied(3), *map(applied, range(2, first - 1, -1))]).of("view:a")
        assert [touch.what for touch in touches] == ["changed"] * (3 - first) + [what]


@pytest.mark.uncounted
def test_a_history_keeps_few_fields_of_large_definitions_and_reads_no_more(tmp_path: Any) -> None:
    fields = tuple(RecordField(f"f{number}", "Int64") for number in range(2_000))
    with open_registry(f"sqlite:///{tmp_path}/registry.db") as registry:
        head = ""
        for number in range(30):
            record = Record("feature_view", "p", "wide", {"n": number}, str(number), fields)
            head = registry.definitions.apply(
                "p", head, [Change("put", record.kind, record.name, record)], author="", message="", commit=""
            ).head
        asked, read = list[int](), registry.definitions.history

        class Counting:
            def history(self, project: str, *, limit: int) -> list[Any]:
                asked.append(limit)
                return read(project, limit=limit)

        made = read_history(Counting(), "p", registry.definitions.chain("p").hashes, None)  # type: ignore[arg-type]
    assert [apply.number for apply in made.applies] == [*range(30, 21, -1)]
    assert (made.is_whole, len(made.of("feature_view:wide")), asked) == (False, 9, [10])


def pairs(touches: Any) -> Any:
    return pairwise(touches)


def test_only_what_differs_is_told_in_words() -> None:
    before = Record(
        "feature_view", "p", "v",
        {"ttl_us": 2 * 24 * HOUR_US, "sql": "SELECT a\nFROM t", "online": True,
         "schema": [{"name": "my_a", "type": "Int64", "description": ""}, {"name": "gone", "type": "String"}],
         "aggregations": [{"name": "n", "windows_us": [HOUR_US, None]}]},
        "", owner="ada", tags={"tier_of": "gold"},
    )  # fmt: skip
    after = replace(
        before,
        document={"ttl_us": None, "sql": "SELECT b\nFROM t", "online": False,
                  "schema": [{"name": "my_a", "type": "Float64", "description": "x"},
                             {"name": "new_b", "type": "Bool"}],
                  "aggregations": [{"name": "n", "windows_us": [90 * 60_000_000, None]}]},
        tags={"tier_of": "silver", "also": "1"},
    )  # fmt: skip
    found = {each.what: (each.before, each.after) for each in differences(before, after) if not each.lines}
    assert found == {
        "tag tier_of": ("gold", "silver"),
        "tag also": (None, "1"),
        "ttl": ("2 days", None),
        "online": ("yes", "no"),
        "feature my_a type": ("Int64", "Float64"),
        "feature my_a description": ("", "x"),
        "feature gone": ("String", None),
        "feature new_b": (None, "Bool"),
        "aggregation n windows": ("1 h, all", "1 h 30 min, all"),
    }
    (sql,) = [each for each in differences(before, after) if each.lines]
    assert [line.sign + line.text for line in sql.lines if line.sign in "+-"] == ["-SELECT a", "+SELECT b"]
    assert differences(before, before) == []
    for odd in ({"a": 1}, {"a": [{}]}, {"a": [{"name": 1}, {"name": 1}]}, {"a": [None, {"b": [[[]]]}]}, {"a_us": [[]]}):
        assert differences(record("v", **odd), record("v", a="x", b=None))


def areas(path: str) -> list[tuple[float, float]]:
    """Return where each bar stands, and how tall it is."""
    return [(float(x), float(tall)) for x, tall in re.findall(r"M([\d.]+) [\d.]+h[\d.]+v([\d.]+)", path)]


def test_a_histogram_shows_rows_by_width_and_single_values_where_they_are() -> None:
    bins = BinsDocument(points=(4.0,), edges=(0.0, 2.0, 12.0), rows=1)
    column = ColumnStatistics("c", "Float64", rows=40, bins=1, at_points=(6,), in_bins=(0, 12, 12, 0))
    drawn = histogram(column, bins, width=BARS, height=1000)
    assert drawn is not None
    bars = areas(drawn.path)
    # 12 rows in 4 bars of half a unit each, and 12 rows in 20: a fifth as tall.
    assert [tall for _, tall in bars] == pytest.approx([3 / 6.6 * 1000] * 4 + [0.6 / 6.6 * 1000] * 20, abs=0.1)
    assert [x for x, _ in areas(drawn.points)] == [8.0]
    assert areas(drawn.points)[0][1] == pytest.approx(6 / 6.6 * 1000, abs=0.1)
    assert (drawn.low, drawn.high) == ("0", "12")
    narrow = BinsDocument(edges=(0.0, 0.1, 0.2, 24.0), rows=1)  # two bins within one bar
    told = histogram(replace(column, at_points=(), in_bins=(0, 10, 5, 24, 0)), narrow, width=BARS, height=1000)
    assert told is not None
    first, *others = (tall for _, tall in areas(told.path))
    assert others == pytest.approx([1000 * (24 / 23.8) / (15 + 24 * 0.8 / 23.8)] * 23, abs=0.1)
    assert first == 1000
    for other in (replace(column, is_hidden=True), replace(column, bins=2), replace(column, in_bins=(1,))):
        assert histogram(other, bins, width=24, height=10) is None
    assert histogram(column, None, width=24, height=10) is None


def test_a_sentinel_is_told_and_does_not_press_all_others_into_a_bar() -> None:
    bins = BinsDocument(points=(-999.0, 4.0), edges=(0.0, 2.0, 12.0), rows=1)
    column = ColumnStatistics(
        "c",
        "Float64",
        rows=400,
        bins=1,
        at_points=(30, 60),
        in_bins=(0, 120, 120, 0),
        quantiles=(-999.0, *[9.0] * 5, 11.0),
    )
    # From the first percentile of the others to the last of all.
    rest = replace(column, at_points=(0, 60), quantiles=(0.04, *[9.0] * 5, 11.0))
    drawn = histogram(column, bins, width=BARS, height=1000)
    others = histogram(rest, replace(bins, points=(1.0, 4.0)), width=BARS, height=1000)
    assert drawn is not None
    assert others is not None
    assert (drawn.path, drawn.points) == (others.path, others.points)
    assert (drawn.low, drawn.high, drawn.apart, others.apart) == ("0.04", "11", ("-999",), ())
    assert "to 11, without -999." in drawn.text
    most = histogram(replace(column, at_points=(300, 60)), bins, width=BARS, height=1000)
    assert most is not None
    assert (most.low, most.apart) == ("-999", ())


def test_a_histogram_of_few_values_that_are_all_known_spreads_none() -> None:
    bins = BinsDocument(points=(0.0,), edges=(3.0, 50.0, 500.0), rows=1)
    column = ColumnStatistics(
        "c", "Float64", rows=500, distinct=2, bins=1, at_points=(250,), in_bins=(0, 0, 250, 0),
        quantiles=(0.0,) * 4 + (500.0,) * 3, top=((0.0, 250), (500.0, 250)),
    )  # fmt: skip
    drawn = histogram(column, bins, width=BARS, height=100)
    assert drawn is not None
    assert (drawn.path, areas(drawn.points)) == ("", [(0.0, 100.0), (BARS - 1.0, 100.0)])


@pytest.mark.parametrize(
    ("points", "edges", "quantiles"),
    [
        ((), (1.0, 1.0), ()),
        (("2026-01-01T00:00:00Z",), (1.7e15, 1.8e15), ("2026-01-01T00:00:00Z",) * 7),
        (("1.50",), (1.0, 2.0), ("1.0", "x", "1", "1", "1", "1", "2")),
        ((True, False), (), ()),
        ((float("nan"),), (0.0, float("inf")), (0.0,) * 7),
    ],
)
def test_a_histogram_of_anything_is_one_or_none(points: Any, edges: Any, quantiles: Any) -> None:
    column = ColumnStatistics(
        "c", "Timestamp", rows=9, bins=1, quantiles=quantiles, at_points=(3,) * len(points),
        in_bins=(0,) * (len(edges) + 1), elsewhere=2,
    )  # fmt: skip
    drawn = histogram(column, BinsDocument(points=points, edges=edges), width=96, height=20)
    assert drawn is None or not re.search("nan|inf", drawn.path + drawn.points)


def test_a_line_leaves_gaps_and_says_what_it_shows() -> None:
    drawn = line([1.0, None, 3.0, 2.0], ["a", "b", "c", "d"], name="Mean", width=108, height=108)
    assert drawn is not None
    assert drawn.path == "M4.0 104.0M70.7 4.0L104.0 54.0"
    assert [text for _, _, text in drawn.dots] == ["a: 1", "c: 3", "d: 2"]
    assert drawn.text == "Mean over 4 runs: 1 first, 2 last, 1 at least, 3 at most."
    assert line([1.0, None], ["a", "b"], name="", width=9, height=9) is None
    flat = line([0.0, 0.0], ["a", "b"], name="Nulls", width=108, height=108, is_share=True)
    assert flat is not None
    assert flat.path == "M4.0 104.0L104.0 104.0"
    nulls = line([0.25, 0.5], ["a", "b"], name="Nulls", width=108, height=108, is_share=True)
    assert nulls is not None
    assert (nulls.low, nulls.path) == ("0 %", "M4.0 54.0L104.0 4.0")  # from nothing on


def test_longer_windows_reach_further_back() -> None:
    lengths = [HOUR_US, 24 * HOUR_US, None, 30 * 24 * HOUR_US]
    drawn, ticks = spans(lengths, width=300)
    assert [span.is_endless for span in drawn] == [False, False, True, False]
    assert drawn[2].x == 0 < drawn[3].x < drawn[1].x < drawn[0].x < 300
    assert all(span.x + span.width == pytest.approx(300) for span in drawn)
    places = {label: x for x, label in ticks}
    assert places["1 h"] == drawn[0].x
    assert places["1 d"] == drawn[1].x


def activity(**more: Any) -> ViewActivity:
    return ViewActivity("v", 1, **{"ttl_us": HOUR_US, **more})


def ended(state: Any, **more: Any) -> RunDocument:
    return RunDocument("r", "v", 1, "incremental", state, 0, "host", 1, **more)


def later(state: Any, started_us: int) -> RunDocument:
    return replace(ended(state), run_id="s", started_us=started_us)


@pytest.mark.parametrize(
    ("made", "state", "says"),
    [
        (activity(), "empty", "nothing was materialized yet"),
        (activity(last=ended("failed", error="no disk")), "failed", "the last run failed: no disk"),
        (activity(begun=ended("running")), "failed", "its process was killed"),
        (activity(begun=ended("running"), alive_until_us=10 * HOUR_US + 1), "running", "under way"),
        (activity(begun=ended("running"), alive_until_us=10 * HOUR_US), "failed", "its process was killed"),
        (activity(watermark=WatermarkDocument(greatest_event_us=9 * HOUR_US)), "fresh", "newest event 1 hour ago"),
        (activity(watermark=WatermarkDocument(greatest_event_us=9 * HOUR_US - 1)), "stale", "expire after 1 h"),
        (activity(watermark=WatermarkDocument(greatest_event_us=1), ttl_us=None), "offline", "9 hours ago"),
        (
            activity(watermark=WatermarkDocument(greatest_event_us=1), last=ended("failed"), ttl_us=None),
            "failed",
            "it says no reason",
        ),
    ],
)
def test_a_view_is_as_its_newest_entries_say(made: ViewActivity, state: str, says: str) -> None:
    assert made.state(10 * HOUR_US) == state
    assert says in made.says(10 * HOUR_US)


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ({}, "empty"),
        ({"run": ended("failed")}, "failed"),
        ({"run": ended("failed", dry_run=True)}, "empty"),
        ({"run": replace(ended("failed"), generation=2)}, "empty"),
        ({"run_start": later("running", 5), "lease": "s"}, "running"),
        ({"run_start": later("running", 5), "lease": "r"}, "failed"),
        ({"run_start": later("running", 5), "released": "s"}, "failed"),
        ({"run_start": replace(later("running", 5), dry_run=True)}, "empty"),
        ({"run_start": later("running", 5), "run": later("done", 5)}, "empty"),
        ({"run_start": later("running", 5), "run": replace(ended("done"), started_us=6)}, "empty"),
        ({"run_start": later("running", 5), "run": replace(ended("done"), started_us=4)}, "failed"),
    ],
)
def test_a_run_is_under_way_while_it_holds_the_lease(tmp_path: Any, told: dict[str, Any], state: str) -> None:
    with open_registry(f"sqlite:///{tmp_path}/registry.db") as registry:
        for kind, document in told.items():
            if isinstance(document, str):
                lease = {"holder": document, "expires_us": HOUR_US, "released": kind == "released"}
                registry.ledger.append("p", "lease", "v", lease)
            else:
                registry.ledger.append("p", kind, "v", asdict(document))
        assert activity_of_view(registry.ledger, "p", "v", {"generation": 1}).state(HOUR_US - 1) == state


def test_a_view_that_failed_may_be_stale_too() -> None:
    failed = RunDocument("r", "v", 1, "incremental", "failed", 0, "h", 1, error="boom")
    made = ViewActivity("v", 1, HOUR_US, WatermarkDocument(greatest_event_us=0), failed)
    assert made.states(HOUR_US) == ("failed",)
    assert made.states(2 * HOUR_US) == ("failed", "stale")
    said = made.says(2 * HOUR_US)
    assert "boom" in said
    assert "2 hours old" in said


@pytest.mark.parametrize("hours", [1, 24, 24 * 7])
def test_no_label_of_the_axis_lies_on_now(hours: int) -> None:
    _, ticks = spans([hours * HOUR_US, 30 * 24 * HOUR_US], width=300)
    assert ticks
    # Letters of 11 pixels are at most 7 wide: a label has its middle at its tick, "now" ends at the right.
    assert all(at + len(label) * 7 / 2 < 300 - 3 * 7 for at, label in ticks)


def test_a_value_is_cut_that_another_program_wrote_at_any_length() -> None:
    assert value("x" * 201) == "x" * 200 + "…"
    assert value("x" * 200) == "x" * 200
    assert value(" " * 500) == '"' + " " * 200 + '…"'


def test_words_are_exact() -> None:
    day = 24 * HOUR_US
    assert [age(us) for us in (0, 1_000_000, 59_999_999, 3 * day, 364 * day, 800 * day)] == [
        "now", "1 second", "59 seconds", "3 days", "12 months", "2 years",
    ]  # fmt: skip
    assert (ago(None, 0), ago(0, HOUR_US), ago(2 * HOUR_US, 0), ago(5, 5)) == (
        "never", "1 hour ago", "in 2 hours", "just now",
    )  # fmt: skip
    assert [duration(us) for us in (None, 7 * day, 90 * 60_000_000, 1_500, -day)] == [
        "no limit", "7 days", "1 h 30 min", "1.5 ms", "-1 day",
    ]  # fmt: skip
    assert [number(each) for each in (None, True, 1_234, 10**18, 0.1 + 0.2, 12345.678, 1e-9, 2e12, "a")] == [
        "–", "true", "1,234", "1e+18", "0.3", "12,346", "1.000e-09", "2.000e+12", "a",
    ]  # fmt: skip
    shares = [(0, 9), (9, 9), (1, 10**6), (10**6 - 1, 10**6), (9_995, 10**4), (1, 3), (0, 0)]
    assert [share(*each).replace("\u00a0", " ") for each in shares] == [
        "0 %", "100 %", "< 0.1 %", "> 99.9 %", "> 99.9 %", "33.3 %", "–",
    ]  # fmt: skip
    assert seen("a\u202eb\0c\ud800\u200b d\n") == "a\\u202eb\\u0000c\\ud800\\u200b d\n"


def test_no_name_is_another_pages_address() -> None:
    for name in ("search", "a/b", "..", "", "a?b#c", "ü%2F", " "):
        path = project_address("p", "feature_view", name)
        assert path.count("/") == 4
        assert not set(path) & set("?# ")
    patterns = [route.pattern for route in ROUTES]
    assert len(patterns) == len(set(patterns))
    route, names = find(("feature_view", "search")) or pytest.fail("no page")
    assert (route.pattern, names) == ("*/*", ("feature_view", "search"))


def test_fields_of_a_record_are_told_where_nothing_else_names_them() -> None:
    one = Record("odd", "p", "n", {"x": 1}, "", fields=(RecordField("f", "Int64"),))
    assert [each.what for each in differences(one, replace(one, fields=(RecordField("f", "String"),)))] == [
        "field f type"
    ]


def test_a_page_of_differences_has_an_end() -> None:
    def version(number: int) -> Record:
        lines = "\n".join(f"SELECT {number} + {at}" for at in range(400))
        return Record("view", "p", "v", {"sql": lines, "note": "x" * 9_000 + str(number)}, "")

    info: Any = None
    touches = [Touch(info, "view", f"v{at}", version(0), version(1), False) for at in range(50)]
    found = [changed for _, changed in changed_by(touches)]
    assert all(len(each.differences) + each.left_out == 2 for each in found)
    texts = [len(line.text) for each in found for part in each.differences for line in part.lines]
    assert 5_000 < sum(texts) < MOST_TEXT
    assert found[0].left_out == 0 < found[-1].left_out == 2


def test_what_was_asked_for_last_stays_at_hand() -> None:
    kept, made = Newest[str](most=2), list[str]()

    def make(before: str | None) -> str:
        made.append(f"{before}")
        return f"made {len(made)}"

    found = [kept.get(project, state, make) for project, state in (("a", 1), ("b", 1), ("a", 1), ("c", 1), ("a", 1))]
    assert found == ["made 1", "made 2", "made 1", "made 3", "made 1"]
    assert [kept.get("b", 1, make), kept.get("b", 2, make)] == ["made 4", "made 5"]  # "b" made room for "c"
    assert made == ["None", "None", "None", "None", "made 4"]
