"""feature_store.yaml: what is read, what the environment changes, what is refused."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from featurestore.backends import local_path, open_offline, open_online, open_registry
from featurestore.errors import SettingsError
from featurestore.project.settings import RegistryServerSettings, StoreSettings, make_settings, read_settings
from featurestore.server.run import _identity_provider


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("FS_")]:
        monkeypatch.delenv(name)


def test_defaults_are_embedded():
    settings = make_settings({"project": "p"})
    assert settings.registry.url == "sqlite:///data/registry.db"
    assert settings.offline_store.url == "data/offline"
    assert settings.online_store.url == "lmdb:///data/online"
    assert settings.server.refresh == timedelta(seconds=10)
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 6566)


def test_stores_take_options_and_durations_have_units():
    settings = make_settings(
        {
            "project": "p",
            "online_store": {"url": "redis://h", "read_timeout_ms": 20},
            "server": {"refresh": "1.5m", "max_body": "2MB"},
            "engine": {"memory_limit": "4GB", "threads": 2},
        }
    )
    assert settings.online_store.options == {"read_timeout_ms": 20}
    assert settings.server.refresh == timedelta(seconds=90)
    assert settings.server.max_body == 2_000_000


def test_the_environment_wins(monkeypatch):
    monkeypatch.setenv("FS_ONLINE_STORE", "redis://env")
    monkeypatch.setenv("FS_ONLINE_STORE__READ_TIMEOUT_MS", "20")
    monkeypatch.setenv("FS_SERVER__PORT", "7000")
    monkeypatch.setenv("FS_PROJECT", "other")
    settings = make_settings({"project": "p", "online_store": "lmdb:///x", "server": {"workers": 2}})
    assert settings.project == "other"
    assert settings.online_store == StoreSettings(url="redis://env", read_timeout_ms="20")
    assert (settings.server.port, settings.server.workers) == (7000, 2)


@pytest.mark.parametrize("document", [{}, {"online_store": "lmdb:///data/online"}])
def test_the_environment_may_set_an_option_alone(monkeypatch, document):
    monkeypatch.setenv("FS_ONLINE_STORE__READ_TIMEOUT_MS", "20")
    settings = make_settings({"project": "p", **document})
    assert settings.online_store == StoreSettings(url="lmdb:///data/online", read_timeout_ms="20")


def test_variables_are_substituted_everywhere(monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    settings = make_settings({"project": "p", "online_store": {"url": "redis://:${SECRET}@h", "x": ["${SECRET}"]}})
    assert settings.online_store.url == "redis://h"
    assert settings.online_store.url.credentials.options == {"password": "s3cret"}
    assert settings.online_store.options == {"x": ["s3cret"]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, ["project", "required"]),
        ({"project": "P"}, ["project", "lower-case"]),
        ({"project": ["p"]}, ["project"]),
        ({"project": "p", "onlin_store": "x"}, ["onlin_store", "'online_store'?"]),
        ({"projct": "p"}, ["projct is not a setting", "'project'?"]),
        ({"onlin_store": "x"}, ["onlin_store", "'online_store'?"]),
        ({"project": "p", "server": {"refresh": "9999999999999d"}}, ["server.refresh", "this is too long"]),
        ({"project": "p", "server": {"prt": 1}}, ["server.prt", "'port'?"]),
        ({"project": "p", "server": {"port": 70000}}, ["server.port"]),
        ({"project": "p", "server": {"auth": "none"}}, ["server.auth", "'auto' or 'required'"]),
        ({"project": "p", "server": {"refresh": 10}}, ["server.refresh", "10s"]),
        ({"project": "p", "server": {"refresh": "10 weeks"}}, ["server.refresh"]),
        ({"project": "p", "registry": "sqlite:///${NOT_SET_ANYWHERE}"}, ["NOT_SET_ANYWHERE", "export"]),
        ({"project": "p", "registry": {"path": "x"}}, ["registry.url"]),
        ({"project": "p", "engine": {"threads": 0}}, ["engine.threads"]),
        ({"project": "p", "engine": {"threads": 2**62}}, ["engine.threads", "1024"]),
        ({"project": "p", "engine": {"memory_limit": 4}}, ["engine.memory_limit: '4'", "4GB"]),
        ({"project": "p", "engine": {"memory_limit": "50%"}}, ["engine.memory_limit: '50%'"]),
        (
            {"project": "p", "online_store": "redis://host:1/abc"},
            ["online_store: redis://host:1: the database is not a number", "/0"],
        ),
        ({"project": "p", "online_store": {"url": "rediss://h/?db=x"}}, ["rediss://h: the database is not a number"]),
        ({"project": "p", "online_store": "redis://h/1/2"}, ["redis://h: the database is not a number"]),
        (
            {"project": "p", "online_store": "redis+cluster://:s@a:1,b/x"},
            ["redis+cluster://…@a:1,b: the database is not a number"],
        ),
        (
            {"project": "p", "online_store": "rediss+cluster://a:1/x"},
            ["rediss+cluster://a:1: the database is not a number"],
        ),
        ({"project": "p", "online_store": "redis://:s@h:1/0?db=1"}, ["redis://…@h:1: ", "two databases"]),
        ({"project": "p", "online_store": "redis://h?db=1&db=2"}, ["redis://h: ", "two databases"]),
        ({"project": "p", "online_store": "lmdb://us:pw@host/x"}, ["no host", " lmdb:///path ", " lmdb:////path "]),
        ({"project": "p", "online_store": "lmdb://host:1/x"}, ["online_store", "no host"]),
        ({"project": "p", "registry": {"url": "SQLite://us@host/x"}}, ["registry.url: ", " SQLite:///path "]),
        ({"project": "p", "offline_store": "file://us:pw@host/x"}, ["offline_store", " file:///path "]),
    ],
    ids=str,
)
def test_mistakes_are_named(document, words):
    with pytest.raises(SettingsError) as caught:
        make_settings(document)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {"server": {"port": "s3cret"}},
        {"online_store": "redis://:s3cret@h/abc?password=s3cret"},
        {"online_store": "redis://:12/s3cret@h:6379/abc"},
        {"online_store": "redis://:12/s#3cret@h:6379/abc"},
        {"online_store": ["redis://:s3cret@h"]},
        {"online_store": "redis://h:1/0;password=s3cret"},
        {"online_store": "redis://h:1/0/s3cret"},
        {"online_store": "redis://h?db=s3cret"},
        {"online_store": "lmdb://us:s3cret@host/x"},
        {"online_store": "lmdb://us:/s3cret@host/x"},
        {"registry": "sqlite://s3cret@host/x"},
        {"redis://:s3cret@h": None},
        {"registry": {"path": "postgresql://u:s3cret@h"}},
    ],
)
def test_secrets_are_not_in_messages(document):
    with pytest.raises(SettingsError) as caught:
        make_settings({"project": "p", **document})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FS_ENGINE__THREADS", "abc", ": engine.threads: Input should be a valid integer"),
        ("fs_engine__threads", "0", ": engine.threads: Input should be greater"),
        ("FS_SERVER__REFRESH", "", ": server.refresh: write a duration"),
        ("FS_SERVER__PRT", "1", ": server.prt is not a setting. Did you mean 'port'?"),
        ("FS_SERVER", "1", " is not a setting. It names a group: set one of FS_SERVER__HOST, FS_SERVER__PORT,"),
        ("FS_ONLINE_STORE", "redis://h/x", ": online_store: redis://h: the database is not a number"),
        ("FS_ONLINE_STORE__URL", "redis://h/x", ": online_store: redis://h: the database is not a number"),
        ("FS_REGISTRY", "sqlite://a:s3cret@b", ": registry.url: files and folders have no host"),
        ("FS_PROJECT", "P", ": project: a name is a lower-case letter"),
    ],
)
def test_a_mistake_in_a_variable_is_blamed_on_it(monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        make_settings({"project": "p"}, where="feature_store.yaml")
    assert str(caught.value).startswith(f"The environment variable {variable}{told}")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "document", [{"engine": {"threads": "abc"}}, {"online_store": "redis://h/x"}, {"server": {"prt": 1}}]
)
def test_a_mistake_in_the_file_is_blamed_on_it_whatever_else_is_set(monkeypatch, document):
    monkeypatch.setenv("FS_ENGINE__MEMORY_LIMIT", "4GB")
    monkeypatch.setenv("FS_ONLINE_STORE__READ_TIMEOUT_MS", "5")
    with pytest.raises(SettingsError, match=r"^feature_store\.yaml: "):
        make_settings({"project": "p", **document}, where="feature_store.yaml")


@pytest.mark.parametrize("value", ["on", "off", "yes", "No", "true", "FALSE"])
@pytest.mark.parametrize(
    "setting", ["engine.threads", "server.port", "server.workers", "server.max_body", "server.auth", "server.refresh"]
)
def test_what_yaml_calls_a_bool_is_no_number(tmp_path, setting, value):
    group, name = setting.split(".")
    (tmp_path / "feature_store.yaml").write_text(f"project: p\n{group}: {{{name}: {value}}}\n")
    with pytest.raises(SettingsError, match=setting):
        read_settings(tmp_path)


@pytest.mark.parametrize("value", ["on", "off", "true", "false"])
def test_an_option_of_a_store_that_yaml_calls_a_bool_is_no_number(tmp_path, value):
    text = f"project: p\nonline_store: {{url: 'redis://h/0', read_timeout_ms: {value}}}\n"
    (tmp_path / "feature_store.yaml").write_text(text)
    with pytest.raises(SettingsError, match=f"(?i)read_timeout_ms: '?{value}'? is not a positive number"):
        open_online(read_settings(tmp_path).online_store, tmp_path)


@pytest.mark.parametrize("value", ["true", "False"])
def test_true_and_false_are_no_texts(tmp_path, value):
    (tmp_path / "feature_store.yaml").write_text(f"project: {value}\n")
    with pytest.raises(SettingsError, match="project: "):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "text", ["*sekret", "!sekret x", "*sekret@h", "{a: *sekret}", '"sekret', "&sekret 1\nb: &sekret 2"]
)
def test_what_yaml_says_of_a_mistake_shows_no_value(tmp_path, text):
    (tmp_path / "feature_store.yaml").write_text(f"project: p\nonline_store: {text}\n")
    with pytest.raises(SettingsError) as caught:
        read_settings(tmp_path)
    assert "sekret" not in f"{caught.value} {caught.value.hint}"


def test_words_that_older_yaml_calls_bools_are_texts(tmp_path):
    (tmp_path / "feature_store.yaml").write_text("project: off\noffline_store: no\nengine: {temp_directory: yes}\n")
    settings = read_settings(tmp_path)
    assert (settings.project, settings.offline_store.url, settings.engine.temp_directory) == ("off", "no", "yes")


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://h:1/", "redis://h:1/15", "rediss://h/?db=3", "redis://[h]/", "redis://h/3?db=03"]
)
def test_urls_without_such_a_database_are_left_to_the_backend(url):
    assert make_settings({"project": "p", "online_store": url}).online_store.url == url


GOOD_MEMORY = ["4GB", "4 GB", " 1.5gib ", "4G", ".5e1MB", "2megabytes", "9000000 bytes", "none", "-1", "-4GB"]
BAD_MEMORY = ["", "4", "GB", "4XB", "4PB", "4GiBx", "4,5GB", "1_000MB", "+4GB", "٤GB", "2ki", "abc", "NONE", "4GB\xa0"]
BAD_MEMORY += ["101%", "5e%", "0GB", "10b", "18446745TB", "1e400GB", "1.2.3GB"]


@pytest.mark.parametrize("text", [*GOOD_MEMORY, *BAD_MEMORY])
def test_what_duckdb_refuses_as_memory_is_refused_when_settings_are_read(text):
    try:
        with duckdb.connect(":memory:", config={"memory_limit": text}) as connection:
            connection.execute("CREATE TABLE numbers AS FROM range(10)")
    except duckdb.Error:
        assert text in BAD_MEMORY
        with pytest.raises(SettingsError, match=r"engine\.memory_limit: .* is not an amount of memory"):
            make_settings({"project": "p", "engine": {"memory_limit": text}})
    else:
        assert text in GOOD_MEMORY
        assert make_settings({"project": "p", "engine": {"memory_limit": text}}).engine.memory_limit == text


@pytest.mark.parametrize("text", [None, "[", "- a", b"\xff\xfe\x00", "just text"])
def test_files_that_are_no_settings_are_refused(tmp_path, text):
    path = tmp_path / "feature_store.yaml"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=r"feature_store\.yaml"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (lambda path: None, "There is no feature_store.yaml in {folder}.", "fs init DIR"),
        (lambda path: path.mkdir(), "{path} cannot be read: Is a directory.", "Make it a file"),
        (lambda path: path.write_bytes(b"a\xff"), "{path} is not UTF-8 at byte 1.", "UTF-8"),
        (lambda path: path.write_text(""), "{path} must hold a mapping that starts with `project:`.", "project: NAME"),
    ],
)
def test_what_is_no_settings_file_is_told_in_words_with_what_to_do(tmp_path, make, message, hint):
    path = tmp_path / "feature_store.yaml"
    make(path)
    with pytest.raises(SettingsError) as caught:
        read_settings(tmp_path)
    assert caught.value.message == message.format(path=path, folder=tmp_path)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["nothing", "a_file", "a_file/below"])
def test_a_repo_that_is_no_folder_is_named(tmp_path, name):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(SettingsError, match=f"^There is no folder {tmp_path / name}"):
        read_settings(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("project: p\nregistry: sqlite:///a\nproject: q\n", ["project is given", "line 1", "line 3"]),
        ("project: p\n'project': p\n", ["project is given", "line 1", "line 2"]),
        ("project: p\nserver:\n  port: 1\n  workers: 2\n  port: 1\n", ["port is given", "line 3", "line 5"]),
        ("project: p\nserver: {port: 1, port: 2}\n", ["port is given", "in line 2 and again in line 2"]),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path, text, words):
    (tmp_path / "feature_store.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_settings(tmp_path)
    for word in [*words, "feature_store.yaml", "keep one"]:
        assert word in caught.value.message


def test_keys_that_are_merged_in_may_be_overridden(tmp_path):
    text = "project: p\nserver: &own {<<: &all {port: 1, workers: 2}, port: 3}\nonline_store: {url: x, more: *own}\n"
    (tmp_path / "feature_store.yaml").write_text(text)
    settings = read_settings(tmp_path)
    assert (settings.server.port, settings.server.workers) == (3, 2)
    assert settings.online_store.options == {"more": {"port": 3, "workers": 2}}


def test_yaml_cannot_make_objects(tmp_path):
    (tmp_path / "feature_store.yaml").write_text("project: !!python/object/apply:os.getcwd []")
    with pytest.raises(SettingsError):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("data/x", "/repo/data/x"),
        ("/abs/x", "/abs/x"),
        ("lmdb:///data/x", "/repo/data/x"),
        ("lmdb:////abs/x", "/abs/x"),
        ("sqlite:///../x", "/x"),
    ],
)
def test_paths_are_relative_to_the_repo(url, expected):
    assert local_path(url, Path("/repo")) == Path(expected)


@pytest.mark.parametrize(
    ("opener", "url", "options", "words"),
    [
        (open_registry, "mysql://x", {}, ["registry", "mysql", "sqlite://"]),
        (open_registry, "data/registry.db", {}, ["registry", "sqlite://"]),
        (open_offline, "s3://bucket/x", {}, ["offline_store", "s3", "a folder"]),
        (open_online, "cassandra://x", {}, ["online_store", "cassandra", "lmdb://", "redis://"]),
        (
            open_online,
            "redis+cluster://h,g:x",
            {},
            ["cannot be read", "redis+cluster://user:password@host1:6379,host2"],
        ),
        (open_online, "redis+cluster://h/1", {}, ["only the database 0"]),
        (open_online, "redis+cluster://h", {"slots": 5}, ["slots"]),
        (open_online, "redis://h", {"read_timeout": 5}, ["read_timeout", "'read_timeout_ms'?"]),
        (open_online, "redis://h", {"read_timeout_ms": "fast"}, ["read_timeout_ms", "fast"]),
        (open_online, "redis://h", {"read_timeout_ms": 0}, ["read_timeout_ms"]),
        (open_online, "redis://h:99999/0", {}, ["cannot be read: its port is greater than 65535"]),
        (open_online, "redis://:secret@h:63x79/0", {}, ["cannot be read: it names no host, or a port that is no"]),
        (open_online, "redis+cluster://h,g:99999", {}, ["cannot be read: its port is greater than 65535"]),
        (open_online, "lmdb:///x", {"map_size": 5}, ["map_size"]),
        (open_online, "lmdb://", {}, ["names no path"]),
        (open_online, "lmdb:///x?y=secret", {}, ["online_store", "takes no options", "'?'"]),
        (open_online, "lmdb:///x#secret", {}, ["online_store", "takes no options", "'#'"]),
        (open_registry, "sqlite:///x.db?mode=secret", {}, ["registry", "takes no options", "'?'"]),
        (open_registry, "sqlite:///x.db#secret", {}, ["registry", "takes no options", "'#'"]),
    ],
)
def test_backends_that_are_not_built_are_named(tmp_path, opener, url, options, words):
    with pytest.raises(SettingsError) as caught:
        opener(StoreSettings(url=url, **options), tmp_path)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


def test_variables_that_nothing_reads_are_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("featurestore.project.settings._told", set())
    for name in ("FS_REGISTRI", "FS_SERVER_PORT", "FS_ENGIN__THREADS", "fs_online_stroe", "FS_TOKEN"):
        monkeypatch.setenv(name, "1")
    for known in ("FS_SERVER_TOKEN", "FS_PROJECT", "FS_SERVER__PORT", "fs_engine__threads", "FSX"):
        monkeypatch.setenv(known, "1" if "__" in known else "shop")
    monkeypatch.setenv("FS_ONLINE_STORE__READ_TIMEOUT_MS", "9")
    monkeypatch.setenv("FS_ONLINE_STORE", "redis://h")
    for _ in range(2):
        make_settings({"project": "shop"})
    told = dict(re.findall(r"variable (\w+) is not a setting: Did you mean '(\w+)'", caplog.text))
    assert told == {
        "FS_REGISTRI": "FS_REGISTRY",
        "FS_SERVER_PORT": "FS_SERVER__PORT",
        "FS_ENGIN__THREADS": "FS_ENGINE__THREADS",
        "FS_ONLINE_STROE": "FS_ONLINE_STORE",
        "FS_TOKEN": "FS_SERVER_TOKEN",
    }
    assert len(caplog.records) == len(told)


def test_a_secret_of_the_identity_provider_is_not_shown_and_a_public_url_is_an_origin() -> None:
    made = make_settings({"project": "p", "registry_server": {"oidc_client_secret": "hunter2"}})
    assert "hunter2" not in f"{made} {made!r} {made.registry_server} {made.model_dump()}"
    for url in (
        "registry.example",
        "https://registry.example/x",
        "https://u:p@registry.example",
        "ftp://a",
        "https://",
        "https://registry.example:x",
        "https://registry.example:443",  # browsers leave it out, and their forms would be another site's
        "http://localhost:80",
    ):
        with pytest.raises(SettingsError, match="write it as https://HOST"):
            make_settings({"project": "p", "registry_server": {"public_url": url}})
    for url in (
        "https://registry.example",
        "https://registry.example:8443",
        "http://localhost:443",
        "http://[::1]:6570",
    ):
        make_settings({"project": "p", "registry_server": {"public_url": url}})
    for proxy in ("127.0.0.1", "10.0.0.0/8", "::1"):
        make_settings({"project": "p", "registry_server": {"trusted_proxies": [proxy]}})
    for proxy in ("10.0.0.0/33", "10.0.0.1/8", "proxy.example", "*", ""):
        with pytest.raises(SettingsError, match="trusted_proxies"):
            make_settings({"project": "p", "registry_server": {"trusted_proxies": [proxy]}})


def test_a_role_that_does_not_exist_names_its_setting() -> None:
    settings = RegistryServerSettings(
        oidc_issuer="https://id.example.org", oidc_audience="site", oidc_roles={"g": "admn"}
    )
    with pytest.raises(SettingsError, match="oidc_roles: There is no role 'admn'"):
        _identity_provider(settings)


def test_dumped_settings_are_settings_again():
    settings = make_settings({"project": "p", "server": {"refresh": "300ms"}, "journal": {"audit_retention": "90d"}})
    assert make_settings(settings.model_dump(mode="json")) == settings
