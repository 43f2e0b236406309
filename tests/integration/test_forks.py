"""After a fork: a child reads online always and offline what its parent did not use; all else is our error at once.

Each case is a program of its own, because what it forks must not have other tests' threads.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore import FeatureStore, errors
from featurestore.cli.main import main

PROGRAM = """
import json, multiprocessing, os, signal, sys, threading, time, warnings
from concurrent.futures import ProcessPoolExecutor
from featurestore import FeatureStore

warnings.simplefilter("ignore")  # Python's own, about forks beside threads
how, before, after = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
store = FeatureStore(".")
row = {"driver_id": 1001, "hour": "2026-01-01T00:00:00Z", "trips": 1, "rating": 1.0}

def training(**options):
    return len(store.get_historical_features("data/trips.parquet", "trip_model_v1", **options).to_arrow())

def read_on():
    return sum(len(batch) for batch in begun)

USES = {
    "training": training,
    "direct": lambda: training(direct=True),
    "peek": lambda: store.peek("driver_stats").num_rows,
    "plan": lambda: store.plan().revision,
    "materialize": lambda: len(store.materialize_incremental()),
    "push": lambda: store.push("pushed", [row]).rows,
    "online": lambda: store.get_online_features(["driver_stats:trips"], [{"driver_id": 1002}]).to_dict()["trips"][0],
    "write online": lambda: store.push("pushed", [row], to="online").rows,
    "deltalake": lambda: __import__("deltalake").DeltaTable(next(
        os.path.dirname(root) for root, _, _ in os.walk("data/offline") if root.endswith("_delta_log"))).version(),
    "begin": lambda: begun.send(None),
    "read on": read_on,
    "drop": lambda: globals().pop("begun") and 0,
}
USES = {name.replace(" ", "-"): use for name, use in USES.items()}

def batches():
    session, source = store.workspace.engine.log._session, "data/driver_stats.parquet"
    from featurestore.engine.duck.session import stream
    with session.open(reads=[source]) as connection:
        yield from stream(connection, f"SELECT d.*, random() FROM '{source}' d, range(1000)", 10_000)
begun = batches()

def tell(name):
    try:
        return USES[name]()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def use(name):
    return USES[name]()

def forked(name):
    if how == "os.fork":
        into, out = os.pipe()
        if os.fork() == 0:
            signal.alarm(10)  # a child that hangs ends, and has told nothing
            os.write(out, json.dumps(tell(name)).encode())
            os._exit(0)
        os.close(out)
        with open(into) as answer:
            return json.loads(answer.read() or "null")
    context = multiprocessing.get_context("fork")
    try:
        if how == "Pool":
            with context.Pool(2) as pool:
                return pool.map(use, [name] * 4)[0]
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            return list(pool.map(use, [name] * 4))[0]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def hold(*locks):
    held = threading.Event()
    def run():
        for lock in locks:
            lock.__enter__()
        held.set()
        time.sleep(60)
    threading.Thread(target=run, daemon=True).start()
    held.wait()

def hold_lmdb():
    from featurestore.online.lmdb import environment as lmdb_environment
    lmdb_environment.FORK_PATIENCE_SECONDS = 0.1
    hold(lmdb_environment.at_work)

def hold_locks():
    from featurestore_registry.forks import _locks
    assert store.workspace.registry._database._lock in _locks
    hold(*_locks)

def wait_to_push():
    USES["push"]()
    threading.Thread(target=USES["push"]).start()
    while not any(committer._waiting for committer in store.workspace.committers.values()):
        time.sleep(0.001)

USES |= {"hold-lmdb": hold_lmdb, "hold-locks": hold_locks, "wait-to-push": wait_to_push}

def over_and_over(name):
    while True:
        use(name)

for name in before:
    use(name)
if how == "threads":  # that use what is named first while a child reads, again and again
    how = "os.fork"
    for name in before * 4:
        threading.Thread(target=over_and_over, args=(name,), daemon=True).start()
    told = []
    for _ in range(int(after[0])):
        time.sleep(0.003)
        told.append(forked("online"))
    print(json.dumps({"told": told, "parent": use("online")}), flush=True)
    os._exit(0)
print(json.dumps({name: forked(name) for name in after}))
for name in before:
    if name not in ("begin", "hold-locks"):
        use(name)  # the parent goes on
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forks") / "shop"

    def run(*command: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(list(command))
        assert ended.value.code == 0

    run("init", str(folder))
    definitions = (folder / "features.py").read_text().replace("    Entity,", "    Entity, PushSource,")
    pushed = 'source=PushSource("pushed", driver_stats_source)'
    definitions = definitions.replace("source=driver_stats_source", pushed, 1)
    (folder / "features.py").write_text(definitions)
    run("apply", "--yes", f"--repo={folder}")
    run("materialize", f"--repo={folder}")
    return folder


def answers(repo: Path, how: str, before: str, after: str, **settings: str) -> dict[str, object]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FS_")} | settings
    command = [sys.executable, "-c", PROGRAM, how, before, after]
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_a_child_of_a_parent_that_used_the_offline_store_is_told_at_once(repo: Path) -> None:
    found = answers(repo, "os.fork", "training", "training peek materialize push direct plan online write-online")
    for refused in ("training", "peek", "materialize", "push"):
        assert "was forked after its parent had used the offline store" in str(found[refused]), refused
        assert 'multiprocessing.get_context("spawn")' in str(found[refused])
    assert isinstance(found["online"], int)
    assert (found["direct"], found["plan"], found["write-online"]) == (500, 1, 1)


@pytest.mark.parametrize("how", ["Pool", "ProcessPoolExecutor"])
def test_a_pool_gives_the_error_and_goes_on(repo: Path, how: str) -> None:
    found = answers(repo, how, "training", "peek online")
    assert str(found["peek"]).startswith("OfflineStoreError: Process ")
    assert isinstance(found["online"], int)


def test_a_child_works_where_its_parent_did_not_use_the_offline_store(repo: Path) -> None:
    found = answers(repo, "os.fork", "direct plan online", "training peek materialize push direct plan online")
    assert isinstance(found.pop("online"), int)
    assert found == {"training": 500, "peek": 10, "materialize": 2, "push": 1, "direct": 500, "plan": 1}


def test_a_parent_that_used_deltalake_itself_makes_no_panic_of_the_child(repo: Path) -> None:
    (told,) = answers(repo, "Pool", "deltalake", "peek").values()
    assert str(told).startswith("OfflineStoreError: Table shop/driver_stats")
    assert 'multiprocessing.get_context("spawn")' in str(told)


def test_a_result_that_was_begun_before_a_fork_neither_hangs_nor_kills_the_child(repo: Path) -> None:
    found = answers(repo, "os.fork", "begin", "drop read-on direct")
    assert found["drop"] == 0
    assert str(found["read-on"]).startswith("EngineError: A result that was read halfway before a fork")
    assert found["direct"] == 500


@pytest.mark.parametrize("amid", ["online", "write-online"])
@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_a_child_reads_online_whatever_other_threads_of_its_parent_were_at(
    repo: Path, kind: str, amid: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"FS_ONLINE_STORE": redis_url} if kind == "redis" else {}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
        with FeatureStore(repo) as store:
            store.materialize_incremental()
    found = answers(repo, "threads", amid, "12", **settings)
    assert isinstance(found["parent"], int)
    assert found["told"] == [found["parent"]] * 12


def test_a_child_finds_every_lock_free(repo: Path) -> None:
    found = answers(repo, "os.fork", "hold-locks", "online materialize")
    assert isinstance(found["online"], int)
    assert found["materialize"] == 2


def test_a_child_does_not_wait_for_pushes_of_its_parent(repo: Path) -> None:
    found = answers(repo, "os.fork", "wait-to-push", "push write-online")
    assert "was forked after its parent had used the offline store" in str(found["push"])
    assert found["write-online"] == 1


def test_a_child_of_a_parent_that_had_to_be_cut_off_is_told_at_once(repo: Path) -> None:
    found = answers(repo, "os.fork", "online hold-lmdb", "online")
    assert str(found["online"]).startswith("OnlineStoreUnavailableError: the online store ")
    assert "was forked while its parent was writing to it" in str(found["online"])


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_crosses_processes(name: str) -> None:
    error = getattr(errors, name)("what", hint="do", view="v")
    crossed = pickle.loads(pickle.dumps(error))
    assert type(crossed) is type(error)
    assert (str(crossed), crossed.message, crossed.hint, crossed.details) == ("what do", "what", "do", {"view": "v"})
