"""The registry's conformance suite over its databases, and what only real processes can show."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.http import access
from featurestore_registry.http.access import Needs
from featurestore_registry.http.client import HttpRegistry
from featurestore_registry.sql import open_registry
from featurestore_registry.testing import RegistryConformance
from support.registry_server import serving_registry


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path / 'new folder' / 'registry.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


class TestSqlite(RegistryConformance):
    @pytest.fixture
    def reopen(self, sqlite_url):
        return lambda: open_registry(sqlite_url)


class TestPostgres(RegistryConformance):
    @pytest.fixture
    def reopen(self, postgres_url):
        return lambda: open_registry(postgres_url)


class EveryKind(dict):
    def get(self, kind, default=None):
        return Needs(Role.ADMIN, Role.ADMIN)


EVERY_KIND = EveryKind()


class TestHttp(RegistryConformance):
    """Over SQLite, by an admin who may read and write entries of every kind, those of the suite too."""

    author = "ada"

    @pytest.fixture
    def reopen(self, sqlite_url, monkeypatch):
        monkeypatch.setattr(access, "LEDGER", EVERY_KIND)
        monkeypatch.setattr(access, "JOURNAL", EVERY_KIND)
        with open_registry(sqlite_url) as registry:
            token, _ = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0, name="ada")
            with serving_registry(registry) as url:
                yield lambda: HttpRegistry(url, token=token)


def test_no_test_of_the_suite_hides_another():
    names = [name for part in RegistryConformance.__mro__ for name in vars(part) if name.startswith("test_")]
    assert len(names) == len(set(names)) > 30


PRELUDE = '''
import json, os, signal, sys, time
from pathlib import Path
from featurestore_registry.errors import RevisionConflictError
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import open_registry

url, start, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

def put(name, value):
    return Change("put", "view", name, Record("view", "p", name, {"value": value}, "f"))

def wait_for_start():
    (start.parent / f"ready-{number}").touch()
    while not start.exists():
        time.sleep(0.001)

def one_of_many():
    """Return the number of this fork; the parent waits for them and kills all when told to, or when one fails."""
    children = []

    def kill_all(*_):
        for child in children:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill_all)
    for number in range(count):
        child = os.fork()
        if not child:
            os.dup2(os.open(start.parent / f"output-{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            return number
        children.append(child)
    has_failed = False
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not has_failed:
            has_failed = True
            kill_all()
    sys.exit(has_failed)

number = one_of_many()
'''

APPLY = """
wait_for_start()
won, lost = [], 0
with open_registry(url) as registry:
    while len(won) < 20:
        head = registry.definitions.chain("p").head
        try:
            changes = [put("shared", f"{number}.{len(won)}"), put(f"own-{number}", len(won))]
            won.append(registry.definitions.apply("p", head, changes, author=str(number), message="", commit="").number)
        except RevisionConflictError:
            lost += 1
print(json.dumps([won, lost]))
"""

FOREVER = """
wait_for_start()
with open_registry(url) as registry:
    while True:
        chain = registry.definitions.chain("p")
        head = chain.number
        # 3 MB: more than SQLite's cache, so the file is written to long before the commit.
        changes = [put(f"v{n}", [head + 1, "x" * 100_000]) for n in range(30)]
        try:
            registry.definitions.apply("p", chain.head, changes, author="", message="", commit="")
        except RevisionConflictError:
            continue
        registry.ledger.append("p", "run", "k", {"head": head + 1})
"""


class Processes:
    """Processes that run one piece of code, started together and gone when the block ends.

    They are forks of one that has imported everything and has opened nothing.
    """

    def __init__(self, folder: Path, url: str, count: int, code: str) -> None:
        self.folder = folder
        self.start = folder / "start"
        self.command = [sys.executable, "-W", "error", "-c", PRELUDE + code, url, str(self.start), str(count)]
        self.count = count

    def __enter__(self):
        for left in [*self.folder.glob("ready-*"), *self.folder.glob("start")]:
            left.unlink()
        self.parent = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        try:
            while len(list(self.folder.glob("ready-*"))) < self.count:
                self.assert_alive()
                time.sleep(0.005)
        except BaseException:
            self.kill()
            raise
        self.start.touch()
        return self

    def __exit__(self, *_):
        self.kill()

    def assert_alive(self) -> None:
        assert self.parent.poll() is None, self.kill()

    def kill(self) -> str:
        """Kill all and return what they told on standard error."""
        self.parent.terminate()
        return self.parent.communicate()[1]

    def output(self) -> list[str]:
        _, errors = self.parent.communicate(timeout=120)
        assert self.parent.returncode == 0, errors
        return [(self.folder / f"output-{number}").read_text() for number in range(self.count)]


def test_eight_processes_apply_twenty_times_each_to_a_new_registry(tmp_path, url):
    """They also create and migrate the file, all at once."""
    with Processes(tmp_path, url, 8, APPLY) as processes:
        results = [json.loads(line) for line in processes.output()]
    assert sorted(number for won, _ in results for number in won) == list(range(1, 161))
    assert sum(lost for _, lost in results) > 0, "there was no contention: the test proves nothing"
    author_of = {number: str(writer) for writer, (won, _) in enumerate(results) for number in won}
    with open_registry(url, create=False) as registry:
        history = registry.definitions.history("p", limit=1000)
        assert [info.number for info in history] == list(range(160, 0, -1))
        for info in history:
            assert info.author == author_of[info.number]
            # All of an apply is of one process: never a mix.
            assert info.changes[1].name == f"own-{info.author}"
            shared = {r.name: r.document["value"] for r in registry.definitions.read("p", info.number).records}
            assert shared["shared"].startswith(f"{info.author}.")
        final = {r.name: r.document["value"] for r in registry.definitions.read("p").records}
        assert {final[f"own-{number}"] for number in range(8)} == {19}


OPEN = """
wait_for_start()
with open_registry(url) as registry:
    assert registry.definitions.head("p") == 0
    registry.ledger.append("p", "opened", str(number), {})
"""


def test_eight_processes_open_a_new_registry_at_once(tmp_path, url):
    with Processes(tmp_path, url, 8, OPEN) as processes:
        processes.output()
    with open_registry(url, create=False) as registry:
        assert {entry.key for entry in registry.ledger.scan("p", "opened")} == {str(n) for n in range(8)}


@pytest.mark.parametrize("turn", range(3))
def test_a_killed_writer_leaves_whole_revisions(tmp_path, url, turn):
    """SIGKILL while two processes write as fast as they can, then two more: all or nothing, and it goes on."""
    reached = 0
    for _ in range(2):
        with Processes(tmp_path, url, 2, FOREVER) as writers, open_registry(url) as watch:
            while watch.definitions.head("p") < reached + 3:
                writers.assert_alive()
                time.sleep(0.01)
            time.sleep(0.011 * turn)
            writers.assert_alive()
        with open_registry(url) as registry:
            head = registry.definitions.head("p")
            assert head >= reached
            reached = head
            history = registry.definitions.history("p", limit=10_000)
            assert [info.number for info in history] == list(range(head, 0, -1))
            for info in history:
                assert len(info.changes) == 30
                read = registry.definitions.read("p", info.number)
                assert [r.document["value"][0] for r in read.records] == [info.number] * 30
            versions = [entry.version for entry in registry.ledger.scan("p", "run", key="k")]
            assert versions == list(range(len(versions), 0, -1))
