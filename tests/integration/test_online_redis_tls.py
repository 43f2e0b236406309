"""Redis and Redis Cluster over TLS: the wire is encrypted, certificates are checked, and errors say what to name."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.redis_server import RedisServer
from support.tls import Certificates, TlsProxy, TlsRedisCluster

from featurestore.errors import OnlineStoreUnavailableError, SettingsError
from featurestore.online.interface import OnlineStore, WriteResult
from featurestore.online.redis.cluster.store import RedisClusterStore
from featurestore.online.redis.store import RedisStore
from featurestore.testing.online_store import record_of
from featurestore.types.times import system_clock

BUSY_MACHINE_MS = 5_000


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str, certificates: Certificates) -> Iterator[TlsProxy]:
    with TlsProxy(certificates, redis_server.port) as proxy:
        yield proxy


def opened(url: str) -> OnlineStore:
    kind = RedisClusterStore if "+cluster" in url else RedisStore
    return kind(url, read_timeout_ms=BUSY_MACHINE_MS, connect_timeout_ms=BUSY_MACHINE_MS)


async def read_by_reader(store: OnlineStore, keys: list[bytes]) -> list[bytes | None]:
    reader = store.reader()
    try:
        await reader.check()
        return await reader.mget(keys)
    finally:
        await reader.close()


def write_and_read(url: str) -> None:
    now_us = system_clock()
    writes = [record_of(now_us, x=number, entity=f"e{number}") for number in range(2_000)]
    keys, records = [write.key for write in writes], [write.record for write in writes]
    store = opened(url)
    try:
        assert set(store.write(writes, now_us=now_us)) == {WriteResult.WRITTEN}
        assert store.mget(keys) == records
        assert asyncio.run(read_by_reader(store, keys)) == records
        assert int(store.facts()["used_memory_bytes"]) > 0
    finally:
        store.close()


def why_not(url: str) -> str:
    """Return what a store and its reader say alike."""
    store = opened(url)
    try:
        with pytest.raises(OnlineStoreUnavailableError) as by_store:
            store.mget([b"fs:a:b"])
        with pytest.raises(OnlineStoreUnavailableError) as by_reader:
            asyncio.run(read_by_reader(store, [b"fs:a:b"]))
    finally:
        store.close()
    assert by_store.value.hint == by_reader.value.hint
    return str(by_store.value)


def test_records_travel_encrypted(proxy: TlsProxy, certificates: Certificates) -> None:
    write_and_read(f"rediss://127.0.0.1:{proxy.port}/0?{certificates.options}")
    assert proxy.encrypted >= 3  # one that writes, one that reads, and the reader's


def test_the_certificate_and_its_name_are_checked(proxy: TlsProxy, certificates: Certificates) -> None:
    unknown = why_not(f"rediss://127.0.0.1:{proxy.port}/0")
    assert "CERTIFICATE_VERIFY_FAILED" in unknown
    assert "?ssl_ca_certs=/path/ca.pem" in unknown
    assert "Hostname mismatch" in why_not(f"rediss://localhost:{proxy.port}/0?{certificates.options}")
    assert proxy.encrypted == 0


def test_a_server_may_want_a_certificate_of_the_client(redis_server: RedisServer, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path, wants_client=True)
    with TlsProxy(certificates, redis_server.port) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        write_and_read(f"{url}?{certificates.client_options}")
        assert "name ssl_certfile and ssl_keyfile" in why_not(f"{url}?{certificates.options}")


@pytest.mark.parametrize(
    ("scheme", "options", "told"),
    [
        ("rediss", "ssl_ca_certs=/nowhere/ca.pem", ["ssl_ca_certs: /nowhere/ca.pem is not there"]),
        ("rediss", "ssl_certfile={noise}&ssl_keyfile={noise}", ["TLS does not take", "PEM"]),
        ("rediss", "ssl_cert_reqs=perhaps", ["TLS does not take", "perhaps"]),
        ("rediss", "ssl_min_version=2", ["TLS does not take", "0x2"]),
        ("rediss", "ssl_ciphers=none-such", ["TLS does not take"]),
        ("rediss", "ssl_ca_cert=/ca.pem", ["'ssl_ca_cert' is not an option", "ssl_ca_certs"]),
        ("redis", "ssl_ca_certs={noise}", ["'ssl_ca_certs' is an option of TLS", "rediss://"]),
    ],
)
@pytest.mark.parametrize("suffix", ["", "+cluster"])
def test_wrong_options_are_told_before_anything_is_opened(
    tmp_path: Path, scheme: str, suffix: str, options: str, told: list[str]
) -> None:
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    with pytest.raises(SettingsError) as raised:
        opened(f"{scheme}{suffix}://:s3cret@127.0.0.1:1?{options.format(noise=noise)}&ssl_password=s3cret")
    for text in told:
        assert text in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_cluster_over_tls(tmp_path: Path, certificates: Certificates) -> None:
    with TlsRedisCluster(tmp_path / "nodes", certificates) as cluster:
        write_and_read(cluster.url)
        assert all(cluster.proxies[server.port].encrypted >= 3 for server in cluster.primaries())
        assert "CERTIFICATE_VERIFY_FAILED" in why_not(cluster.url.partition("?")[0])
        # A look at the topology may still be under way, and a node that ends under it would leave it an open socket.
        for thread in threading.enumerate():
            if thread.name.endswith("(_read)"):
                thread.join(timeout=30)
