"""The registry's conformance suite over its databases, and what only real processes can show."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.http import access
from featurestore_registry.http.access import Needs
from featurestore_registry.http.client import HttpRegistry
from featurestore_registry.sql import open_registry
from featurestore_registry.testing import RegistryConformance
from support.forked_fs import forked_fs
from support.processes import plain_environment
from support.registry_server import serving_registry
from support.serving import until


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


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for `TestHttp`: its URL, a token, its registry's folder with the file and an empty copy of it."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch, open_registry(f"sqlite:///{folder / 'registry.db'}") as registry:
        patch.setattr(access, "LEDGER", EVERY_KIND)
        patch.setattr(access, "JOURNAL", EVERY_KIND)
        token, _ = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0, name="ada")
        shutil.copy(folder / "registry.db", folder / "empty.db")
        with serving_registry(registry) as url:
            yield url, token, folder


class TestHttp(RegistryConformance):
    """Over SQLite, by an admin who may read and write entries of every kind, those of the suite too."""

    author = "ada"

    @pytest.fixture
    def reopen(self, served):
        url, token, folder = served
        shutil.copy(folder / "empty.db", folder / "new.db")
        (folder / "new.db").replace(folder / "registry.db")
        return lambda: HttpRegistry(url, token=token)


def test_no_test_of_the_suite_hides_another():
    names = [name for part in RegistryConformance.__mro__ for name in vars(part) if name.startswith("test_")]
    assert len(names) == len(set(names)) > 30


PRELUDE = """
import json, os, time, warnings
from pathlib import Path
from featurestore_registry.errors import RevisionConflictError
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import open_registry

warnings.simplefilter("error")
url, number, count = os.environ["URL"], int(os.environ["NUMBER"]), int(os.environ["COUNT"])

def put(name, value):
    return Change("put", "view", name, Record("view", "p", name, {"value": value}, "f"))

Path(f"ready-{number}").touch()
while len(list(Path().glob("ready-*"))) < count:
    time.sleep(0.001)
"""

APPLY = """
won, lost = [], 0
with open_registry(url) as registry:
    while len(won) < 10:
        head = registry.definitions.chain("p").head
        try:
            changes = [put("shared", f"{number}.{len(won)}"), put(f"own-{number}", len(won))]
            won.append(registry.definitions.apply("p", head, changes, author=str(number), message="", commit="").number)
        except RevisionConflictError:
            lost += 1
print(json.dumps([won, lost]))
"""

FOREVER = """
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


def numbered(url: str, count: int) -> list[dict[str, str]]:
    """Return the environments of processes that begin together."""
    return [{"URL": url, "NUMBER": str(number), "COUNT": str(count)} for number in range(count)]


def at_once(folder: Path, url: str, count: int, code: str) -> list[str]:
    """Run code in processes that begin together, and return what each printed."""
    ended = forked_fs().run_code(PRELUDE + code, folder, numbered(url, count))
    assert [status for status, _ in ended] == [0] * count, ended
    return [printed for _, printed in ended]


@contextmanager
def two_that_are_killed(folder: Path, url: str, code: str) -> Iterator[None]:
    """Run code in two processes that begin together, and kill them at the end of the block."""
    folder.mkdir()
    given = [{**plain_environment(), **each} for each in numbered(url, 2)]
    running = [forked_fs().start(PRELUDE + code, None, folder, each, "") for each in given]
    try:
        yield
    finally:
        for each in running:
            os.kill(each.pid, signal.SIGKILL)
        printed = [each.stdout.read() for each in running]
        assert [each.wait() for each in running] == [-signal.SIGKILL] * 2, printed


def test_eight_processes_apply_ten_times_each_to_a_new_registry(tmp_path, url):
    """They also create and migrate the file, all at once."""
    results = [json.loads(line) for line in at_once(tmp_path, url, 8, APPLY)]
    assert sorted(number for won, _ in results for number in won) == list(range(1, 81))
    assert sum(lost for _, lost in results) > 0, "there was no contention: the test proves nothing"
    author_of = {number: str(writer) for writer, (won, _) in enumerate(results) for number in won}
    with open_registry(url, create=False) as registry:
        history = registry.definitions.history("p", limit=1000)
        assert [info.number for info in history] == list(range(80, 0, -1))
        for info in history:
            assert info.author == author_of[info.number]
            # All of an apply is of one process: never a mix.
            assert info.changes[1].name == f"own-{info.author}"
            shared = {r.name: r.document["value"] for r in registry.definitions.read("p", info.number).records}
            assert shared["shared"].startswith(f"{info.author}.")
        final = {r.name: r.document["value"] for r in registry.definitions.read("p").records}
        assert {final[f"own-{number}"] for number in range(8)} == {9}


OPEN = """
with open_registry(url) as registry:
    assert registry.definitions.head("p") == 0
    registry.ledger.append("p", "opened", str(number), {})
"""


def test_eight_processes_open_a_new_registry_at_once(tmp_path, url):
    at_once(tmp_path, url, 8, OPEN)
    with open_registry(url, create=False) as registry:
        assert {entry.key for entry in registry.ledger.scan("p", "opened")} == {str(n) for n in range(8)}


@pytest.mark.parametrize("turn", range(3))
def test_a_killed_writer_leaves_whole_revisions(tmp_path, url, turn):
    """SIGKILL while two processes write as fast as they can, then two more: all or nothing, and it goes on."""
    reached = 0
    for turns in range(2):
        with two_that_are_killed(tmp_path / f"{turns}", url, FOREVER), open_registry(url) as watch:
            until(lambda: watch.definitions.head("p") >= reached + 3)  # noqa: B023 - it is called here
            time.sleep(0.011 * turn)
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
