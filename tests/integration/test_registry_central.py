"""A registry that a team shares, by real processes: PostgreSQL, `fs registry serve`, a repo, a feature server."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.errors import RegistryFormatError
from featurestore_registry.http import wire
from featurestore_registry.http.client import HttpRegistry
from featurestore_registry.sql import open_registry as open_sql
from featurestore_registry.sql import postgres
from support.example import REPOSITORY
from support.forked_fs import forked_fs
from support.postgres_server import PostgresServer, find_program
from support.processes import plain_environment
from support.registry_process import registry_process
from support.registry_server import serving_registry
from support.serving import serving, until

pytestmark = pytest.mark.uncounted

NEW_SERVICE = """
trip_model_v2 = FeatureService("trip_model_v2", features=[driver_stats[["trips"]]])
"""


class Team:
    """The database's host, a repo that knows the registry's URL alone, and tokens."""

    def __init__(self, folder: Path, database: PostgresServer) -> None:
        self.folder, self.database = folder, database
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.host, self.repo = folder / "host", folder / "tour"
        self.host.mkdir()
        (self.host / "feature_store.yaml").write_text(f"project: host\nregistry: {database.url()}\n")
        self.fs("init", "tour", at=folder)
        settings = self.repo / "feature_store.yaml"
        settings.write_text(re.sub("(?m)^registry:.*", f"registry: {self.url}", settings.read_text()))
        self.token = ""

    def fs(self, *arguments: str, at: Path | None = None, expect: int = 0) -> str:
        environment = {**plain_environment(), "COLUMNS": "300"}
        if at is None:
            environment["FS_REGISTRY_TOKEN"] = self.token
        code, said = forked_fs().run(arguments, at or self.repo, environment, "")
        assert code == expect, said
        return said

    def make_token(self, *arguments: str, at: Path | None = None) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.fs("token", "create", *arguments, "--json", at=at))
        return made

    def served(self) -> ExitStack:
        """Serve the registry, until the stack is closed."""
        stack = ExitStack()
        stack.enter_context(registry_process(self.host, "--port", self.url.rpartition(":")[2]))
        until(lambda: httpx.get(f"{self.url}/ready").is_success)
        return stack

    def postgres(self, program: str, *arguments: str) -> None:
        subprocess.run([find_program(program), *arguments, "--dbname", self.database.url()], check=True)


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with PostgresServer() as database:
        yield Team(tmp_path, database)


def ask(server: httpx.Client, token: str, service: str = "trip_model_v1") -> int:
    body = {"feature_service": service, "entities": {"driver_id": [1001], "trip_km": [12.5]}}
    headers = {"authorization": f"Bearer {token}"}
    return server.post("/v1/online-features", json=body, headers=headers).status_code


@pytest.mark.slow(15)
def test_a_team_shares_a_registry_through_restarts_and_a_restored_backup(team: Team) -> None:
    assert "it had" not in team.fs("registry", "upgrade", at=team.host)
    served = team.served()
    assert "A valid token is needed" in team.fs("plan", expect=1)
    team.token = team.make_token("--role", "admin", "--all-projects", at=team.host)["token"]
    headers = {"authorization": f"Bearer {team.token}"}
    until(lambda: httpx.get(f"{team.url}/api/v1/projects", headers=headers).is_success)
    assert "revision 0 -> 1" in team.fs("plan")
    assert "tour is at revision 1." in team.fs("apply", "--yes")
    assert "nothing to change" in team.fs("plan")
    made = team.make_token("--role", "operator", "--server")
    of_server = made["token"]
    kept, revoked = (team.make_token("--role", "reader") for _ in range(2))
    backup = team.folder / "backup"
    team.postgres("pg_dump", "--format", "custom", "--file", str(backup))
    team.fs("materialize")
    assert "incremental done" in team.fs("status")
    assert f"ok      registry: project tour is at revision 1, in {team.url}" in team.fs("doctor")

    environment = {"FS_REGISTRY_TOKEN": of_server, "FS_SERVER__REFRESH": "300ms"}
    with serving(team.repo, environment=environment) as process, process.client() as server:
        until(lambda: ask(server, kept["token"]) == 200)
        assert ask(server, revoked["token"]) == 200
        assert ask(server, of_server) == 200
        assert ask(server, "wrong") == 401

        # An apply and a revocation of another machine reach the server with its next refresh.
        definitions = team.repo / "features.py"
        before = definitions.read_text()
        definitions.write_text(before + NEW_SERVICE)
        team.fs("apply", "--yes")
        until(lambda: ask(server, kept["token"], "trip_model_v2") == 200, seconds=10)
        team.fs("token", "revoke", revoked["id"])
        until(lambda: ask(server, revoked["token"]) == 401, seconds=10)
        team.fs("materialize")

        served.close()
        assert "onnection refused" in team.fs("status", expect=1)
        assert "onnection refused" in team.fs("apply", "--yes", expect=1)
        said = team.fs("doctor", expect=1)
        assert said.count("onnection refused") == 1, said
        assert "not checked: clock, sources, identities, windows, access" in said
        until(lambda: "The registry is away" in process.log.read_text())
        assert server.get("/ready").status_code == 200
        assert ask(server, kept["token"], "trip_model_v2") == 200
        assert ask(server, revoked["token"]) == 401
        served = team.served()

        team.database.kill()
        assert httpx.get(f"{team.url}/ready").status_code == 503
        assert httpx.get(f"{team.url}/health").status_code == 200
        said = team.fs("plan", expect=1)
        assert "The registry's database does not answer." in said
        assert "the log of the registry's server" in said
        assert ask(server, kept["token"]) == 200
        team.database.start()
        until(lambda: httpx.get(f"{team.url}/ready").status_code == 200)
        assert "nothing to change" in team.fs("plan")

        # The backup knows neither revision 2, nor the revocation, nor a run.
        served.close()
        team.postgres("pg_restore", "--clean", "--if-exists", "--single-transaction", str(backup))
        served = team.served()
        until(lambda: "the registry went back from revision 2 to 1" in process.log.read_text())
        assert f"Token {revoked['id']} (without a name) stays refused" in process.log.read_text()
        assert ask(server, kept["token"]) == 200
        assert ask(server, revoked["token"]) == 401
        for command in ("doctor", "status"):
            said = team.fs(command, expect=int(command == "doctor"))
            assert "which this registry does not have: one of them was restored from a backup" in said, said
        assert "1 to create" in team.fs("plan")
        team.fs("apply", "--yes")
        team.fs("repair", "--yes")
        team.fs("doctor")
        until(lambda: ask(server, kept["token"], "trip_model_v2") == 200)

        # A server whose own token is revoked serves on, and says why it learns nothing new.
        team.fs("token", "revoke", made["id"])
        until(lambda: "This server may not read the registry any more" in process.log.read_text(), seconds=10)
        assert "What FS_REGISTRY_TOKEN holds is unknown, revoked or expired" in process.log.read_text()
        metrics = server.get("/metrics", headers={"authorization": f"Bearer {kept['token']}"}).text
        assert 'featurestore_registry_refreshes_total{outcome="refused"}' in metrics
        assert ask(server, kept["token"]) == 200
        served.close()

        # A registry that takes requests and answers none holds up neither reads nor the end.
        with socket.create_server(("127.0.0.1", int(team.url.rpartition(":")[2]))) as hangs:
            hangs.settimeout(10)
            with hangs.accept()[0]:
                assert ask(server, kept["token"]) == 200
                process.process.terminate()
                assert process.process.wait(timeout=10) == 0


def test_the_unit_and_the_proxy_fit_the_page(tmp_path: Path) -> None:
    folder = REPOSITORY / "deploy" / "registry"
    page = (REPOSITORY / "docs" / "how-to" / "registry.md").read_text()
    unit, proxy = (folder / name for name in ("featurestore-registry.service", "nginx.conf"))
    for file in (unit, proxy):
        assert f"`{file.relative_to(REPOSITORY)}`" in page
    command, *arguments = re.findall("(?m)^ExecStart=(.*)", unit.read_text())[0].split()
    assert (Path(command).name, arguments[:2]) == ("fs", ["registry", "serve"])
    port = arguments.index("--port")
    assert f"server 127.0.0.1:{arguments[port + 1]};" in proxy.read_text()
    (tmp_path / "feature_store.yaml").write_text("project: host\n")
    with registry_process(tmp_path, *arguments[2:port], "--port", "0", *arguments[port + 2 :], fresh=True) as url:
        assert httpx.get(f"{url}/ready").status_code == 200
    assert f"client_max_body_size  {wire.MAX_BODY_BYTES >> 20}m;" in proxy.read_text()


@pytest.mark.parametrize("proxies", ["[]", "[127.0.0.1]"])
def test_the_audit_believes_a_trusted_proxy_alone(proxies: str, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "feature_store.yaml").write_text(
        f"project: host\nregistry: sqlite:///r.db\nregistry_server: {{trusted_proxies: {proxies}}}\n"
    )
    with open_sql(f"sqlite:///{host}/r.db") as registry:
        token, _ = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0)
        with registry_process(host) as url:
            headers = {"authorization": f"Bearer {token}", "x-forwarded-for": "192.0.2.9, 203.0.113.7"}
            policy = {"refuse": ["destructive"], "approve": [], "groups": {}}
            assert httpx.put(f"{url}/api/v1/policy?project=p", json=policy, headers=headers).is_success
        (entry,) = registry.journal.scan("p", "audit")
    # The rightmost one: whatever stands before it, anybody may have sent.
    assert entry.document["from"] == ("127.0.0.1" if proxies == "[]" else "203.0.113.7")


@pytest.mark.parametrize("schema", ["0001", "9999"])
def test_a_schema_of_another_version_is_told_to_clients(
    schema: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CHECK_SECONDS", 0)
    with open_sql(postgres_url) as registry:
        token, _ = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0)
        with serving_registry(registry) as url, HttpRegistry(url, token=token) as client:
            assert client.definitions.head("p") == 0
            assert httpx.get(f"{url}/ready").status_code == 200
            with psycopg.connect(postgres_url) as connection:
                connection.execute("UPDATE registry_version SET version_num = %s", [schema])
            assert httpx.get(f"{url}/ready").status_code == 503
            with pytest.raises(RegistryFormatError, match="has the schema of another version") as raised:
                client.definitions.head("p")
            assert "`fs registry upgrade` there" in raised.value.hint
    (tmp_path / "feature_store.yaml").write_text(f"project: host\nregistry: {postgres_url}\n")
    code, said = forked_fs().run(["registry", "serve", "--port", "0"], tmp_path, plain_environment(), "")
    assert code == 1
    assert ("Run `fs registry upgrade`" if schema == "0001" else "of a newer version") in said
