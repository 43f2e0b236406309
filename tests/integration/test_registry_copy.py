"""A registry copied to another database: everything is as it was, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from featurestore_registry.auth import Role, create_token, tokens
from featurestore_registry.errors import RegistryError, RegistryUnavailableError
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import copy_registry, copying, open_registry
from featurestore_registry.sql.database import Database
from sqlalchemy import Connection
from support.postgres_server import PostgresServer

from featurestore.backends import copy_registry as copy_registry_of
from featurestore.errors import SettingsError
from featurestore.project.settings import make_settings

pytestmark = pytest.mark.uncounted


def fill(registry: Registry) -> None:
    for name in ("a", "b", "a"):
        head = registry.definitions.chain("p").head
        record = Record("view", "p", name, {"at": head, "text": "é\u2028\\u0000"}, f"f{head[:4]}", owner="ada")
        registry.definitions.apply("p", head, [Change("put", "view", name, record)], author="é", message="m", commit="")
    for count in range(3):
        registry.ledger.append("p", "run", "k", {"n": count, "large": 2**80})
    create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0)
    registry.journal.append("p", "commit", [("v", {"n": count}) for count in range(4)])
    registry.journal.forget("p", "commit", registry.journal.scan("p", "commit")[-1].written_at.replace(year=2100))


def everything(registry: Registry) -> object:
    definitions = registry.definitions
    return (
        definitions.projects(),
        definitions.chain("p"),
        definitions.history("p"),
        [definitions.read("p", number) for number in range(4)],
        registry.ledger.scan("p", "run", key="k"),
        tokens(registry.ledger, None),
        registry.journal.scan("p", "commit"),
        registry.state("p").ledger,
    )


@pytest.mark.parametrize("way", ["sqlite to postgresql", "postgresql to sqlite", "postgresql to postgresql"])
def test_a_copy_is_what_it_was_made_of_and_goes_on(way: str, postgres_server: PostgresServer, tmp_path: Path) -> None:
    source, target = (
        f"sqlite:///{tmp_path / str(place)}.db"
        if kind == "sqlite"
        else postgres_server.new_place()  # two schemas of one database
        for place, kind in enumerate(way.split(" to "))
    )
    with open_registry(source) as registry:
        fill(registry)
        counts = copy_registry(source, target)
        assert counts["registry_revision"] == 3
        assert counts["registry_ledger"] == 4
        with open_registry(target, create=False) as copy:
            assert everything(copy) == everything(registry)
            # Numbers go on where they were, that of an entry that was forgotten included.
            cursors = [each.journal.append("p", "commit", [("v", {})]) for each in (registry, copy)]
            assert cursors[0] == cursors[1] == [5]
            numbers = {each.ledger.append("p", "run", "k", {}) for each in (registry, copy)}
            assert numbers == {4}
            assert registry.state("p").ledger == copy.state("p").ledger
            head = copy.definitions.chain("p").head
            assert copy.definitions.apply("p", head, [Change("delete", "view", "b")], author="", message="", commit="")
        with pytest.raises(RegistryError, match="holds a registry") as held:
            copy_registry(source, target)
        assert "empty database" in held.value.hint
        with pytest.raises(RegistryError, match="holds a registry"):
            copy_registry(source, source)


def test_a_copy_that_is_cut_off_leaves_nothing(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"sqlite:///{tmp_path}/registry.db"
    with open_registry(source) as registry:
        fill(registry)
    with monkeypatch.context() as patched:
        patched.setattr(copying, "_last_number", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy_registry(source, postgres_url)
    with open_registry(postgres_url) as registry:
        assert registry.definitions.projects() == []
    assert copy_registry(source, postgres_url)["registry_project"] == 1
    with pytest.raises(RegistryUnavailableError, match="There is no registry"):
        copy_registry(f"sqlite:///{tmp_path}/typo.db", postgres_url)


def test_what_is_written_to_the_target_a_moment_before_is_not_mixed_with_the_copy(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"sqlite:///{tmp_path}/registry.db"
    with open_registry(source) as registry, open_registry(postgres_url) as other:
        fill(registry)
        check = copying._check_empty

        def check_and_lose(database: Database, connection: Connection) -> None:
            check(database, connection)
            monkeypatch.setattr(copying, "_check_empty", check)
            other.ledger.append("p", "run", "theirs", {})

        monkeypatch.setattr(copying, "_check_empty", check_and_lose)
        with pytest.raises(RegistryError, match="holds a registry"):
            copy_registry(source, postgres_url)
        assert other.definitions.projects() == []


def test_a_registry_behind_http_is_copied_at_its_database(tmp_path: Path) -> None:
    settings = make_settings({"project": "p", "registry": "http://127.0.0.1:1"})
    with pytest.raises(SettingsError, match="behind HTTP is copied where its database is"):
        copy_registry_of(settings.registry, "sqlite:///copy.db", tmp_path)
