"""No piece of a password is in anything that is shown, whatever characters it has and however it stands in the URL."""

from __future__ import annotations

import contextlib
import io
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.small_project import small_project

from featurestore.backends import check_stores, open_online
from featurestore.cli.main import main
from featurestore.errors import FeatureStoreError
from featurestore.online.redis.node import parsed_url
from featurestore.online.url import StoreUrl
from featurestore.project.settings import make_settings

HARD = "/#?@:%[] \\\"'{}&=+,;!*|>-"
PRINTABLE = st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=("Cc", "Cs"))
PASSWORDS = st.text(st.one_of(st.sampled_from(HARD), PRINTABLE), min_size=4, max_size=20)
URLS = [
    "redis://{}@127.0.0.1:1/0",
    "redis://{}@127.0.0.1:1/abc",
    "redis://{}@127.0.0.1:port/0",
    "redis://{}@127.0.0.1:1/0?decode_responses=true",
    "rediss://{}@127.0.0.1:1?ssl_ca_certs=/nowhere/ca.pem",
    "rediss://{}@127.0.0.1:1?ssl_cert_reqs=sometimes",
    "redis+cluster://{}@127.0.0.1:1,127.0.0.1:2",
    "redis+cluster://{}@127.0.0.1:1/3",
    "redis+sentinel://{}@127.0.0.1:1/service/0",
    "valkey://{}@127.0.0.1:1",
    "redis://{}@",
    "redis://{}@[::1",
]
FEW = settings(max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EXAMPLES = [":12/sec#ret", ":sec/ret?more", ":a@b/c@d?e#f", ":se: cret #word", ":[secret]", "user:sec%zzret", "secret"]


def pieces(password: str) -> Iterator[str]:
    return (password[start : start + 4] for start in range(len(password) - 3))


def shown_of(value: object) -> str:
    return f"{value} {value!r} {vars(value) if hasattr(value, '__dict__') else ''}"


def said_in_process(url: str) -> str:
    """Return all that settings and stores of a URL say of themselves, and of what is wrong."""
    said = []
    try:
        made = make_settings({"project": "p", "online_store": {"url": url, "write_timeout_ms": 1}})
        said += [shown_of(made), shown_of(made.online_store), shown_of(made.online_store.url), str(made.model_dump())]
        said.append(made.model_dump_json())
        check_stores(
            registry=made.registry, offline_store=made.offline_store, online_store=made.online_store, root=Path()
        )
        with contextlib.closing(open_online(made.online_store, Path())) as store:
            said.append(f"{store} {store!r}")
            store.put(b"fs:x", b"y")
    except FeatureStoreError as error:
        said += [shown_of(error), str(error.details), "".join(traceback.format_exception(error))]
    return "\n".join(said)


def assert_nothing_leaks(said: str, secret: str, *, beside: str) -> None:
    """``beside`` is what is said where the password is another one: what is in it as well is none of the password."""
    assert [piece for piece in pieces(secret) if piece in said and piece not in beside] == []


def ways(secret: str) -> list[str]:
    """Return user and password as they may stand in a URL: as they are, and percent-encoded."""
    user, separator, password = secret.partition(":")
    return [secret, f"{quote(user, safe='')}{separator}{quote(password, safe='')}"]


@pytest.mark.parametrize("url", URLS)
@given(secret=PASSWORDS.map(":{}".format) | PASSWORDS)
@FEW
def test_nothing_that_settings_stores_and_their_errors_say_has_a_piece_of_it(url: str, secret: str) -> None:
    beside = said_in_process(url.format(":x"))
    for way in ways(secret):
        said = said_in_process(url.format(way))
        assert_nothing_leaks(said, secret, beside=beside)
        assert_nothing_leaks(said, way, beside=beside)


@pytest.mark.parametrize("secret", EXAMPLES)
@pytest.mark.parametrize("url", URLS)
def test_nor_do_those_that_once_were_shown(url: str, secret: str) -> None:
    assert_nothing_leaks(said_in_process(url.format(secret)), secret, beside=said_in_process(url.format(":x")))


@given(user=st.just("") | PASSWORDS, password=PASSWORDS)
@example(user="", password="a/b#c?d@e:f[g] h")
@FEW
def test_the_server_is_given_exactly_the_password(user: str, password: str) -> None:
    encoded = f"{quote(user, safe='')}:{quote(password, safe='')}"
    asked = [encoded]
    if "%" not in user + password and ":" not in user:  # raw, these two mean something
        asked.append(f"{user}:{password}")
    for credentials in asked:
        options = parsed_url(f"redis://{credentials}@127.0.0.1:7/3")
        expected = {"host": "127.0.0.1", "port": 7, "db": 3, "password": password}
        assert options == (expected | {"username": user} if user else expected)
    in_query = parsed_url(f"rediss://h/?password={quote(password, safe='')}&ssl_password={quote(user, safe='')}")
    assert in_query["password"] == password
    assert in_query.get("ssl_password", "") == user


@pytest.mark.parametrize("text", ["sqlite:///a@b", "sqlite:////a:b@c/d", "lmdb:///x@y", "lmdb://u:p@z", "data/a@b", ""])
def test_folders_and_files_are_left_as_they_are(text: str) -> None:
    assert (StoreUrl(text), StoreUrl(text).credentials.options) == (text, {})


@pytest.mark.parametrize(
    "text", ["redis://:sekret/x#y", "redis://u:sekret", "redis://:sekret", "rediss://:sekret?db=1"]
)
def test_what_names_no_host_is_not_shown(text: str) -> None:
    assert "sekret" not in shown_of(StoreUrl(text))


COMMANDS = [
    ["doctor"],
    ["status"],
    ["show", "carrier_profile"],
    ["materialize"],
    ["online", "--features", "carrier_profile:flights", "--entity", "carrier=UA"],
    ["verify"],
    ["gc", "--dry-run"],
]


def said_by_command(root: Path, arguments: list[str]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main([*arguments, "--repo", str(root)])
    return said.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    small_project(root)
    return root


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@given(secret=PASSWORDS.map(":{}".format), url=st.sampled_from(URLS), is_quoted=st.booleans())
@settings(parent=FEW, max_examples=examples(4))
@example(secret=":12/sec#ret", url=URLS[1], is_quoted=True)
@example(secret=":se: cret", url=URLS[1], is_quoted=False)
def test_no_command_prints_a_piece_of_it(
    root: Path, command: list[str], secret: str, url: str, is_quoted: bool
) -> None:
    said = []
    for way in (":x", secret):
        text = url.format(way)
        where = json.dumps(text) if is_quoted else text  # what is not quoted may be no YAML
        lines = ["project: shop", f"online_store:\n  write_timeout_ms: 1\n  url: {where}"]
        (root / "feature_store.yaml").write_text("\n".join(lines), encoding="utf-8")
        said.append(said_by_command(root, command))
    assert_nothing_leaks(said[1], secret, beside=said[0])
