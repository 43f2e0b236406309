"""feature_store.yaml and the ``FS_`` environment variables."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from featurestore.definitions.base import check_object_name
from featurestore.errors import SettingsError, did_you_mean
from featurestore.online.url import HOSTS, StoreUrl
from featurestore.project import webhook

logger = logging.getLogger("featurestore")

FILE_NAME = "feature_store.yaml"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read_duration(value: Any) -> timedelta:
    """Return what a text such as ``10s`` or ``90d`` means; raises ValueError for any other."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a duration as a number and ms, s, m, h or d, for example 10s")
    try:
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        raise ValueError("this is too long: time is counted until the year 9999") from None


def _duration_text(span: timedelta) -> str:
    """Return what `read_duration` reads back: dumped settings are settings again."""
    return f"{span // timedelta(milliseconds=1)}ms"


Duration = Annotated[
    timedelta, BeforeValidator(read_duration), PlainSerializer(_duration_text, return_type=str, when_used="json")
]


def _read_url(value: Any) -> StoreUrl:
    if not isinstance(value, str):
        raise ValueError("write the URL as a text")
    local = re.match(r"(?i)(sqlite|lmdb|file)://[^/]*[@:]", value)
    if local is not None:  # not quoted: it may hold a password
        raise ValueError(
            f"files and folders have no host: write {local[1]}:///path for a path in the feature repo, and "
            f"{local[1]}:////path for an absolute path"
        )
    return StoreUrl(value)


class StoreSettings(BaseModel):
    """A store's URL and options; a bare text in the file is the ``url``."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    url: Annotated[StoreUrl, PlainValidator(_read_url)]

    @property
    def options(self) -> dict[str, Any]:
        """Everything besides the URL, for the backend to check."""
        return dict(self.model_extra or {})


def _read_store(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Store = Annotated[StoreSettings, NoDecode, BeforeValidator(_read_store)]


def _check_redis_database(store: StoreSettings) -> StoreSettings:
    """Refuse a database that is not a number and a second database: the driver would silently take 0, or one of two."""
    try:
        scheme, hosts, path, query, _ = urlsplit(store.url)
    except ValueError:
        return store  # the backend says what is wrong with it
    if scheme.removesuffix("+cluster") not in ("redis", "rediss") or not HOSTS.fullmatch(hosts):
        return store
    databases = [*filter(None, (path.strip("/"), *parse_qs(query).get("db", ())))]
    location = f"{scheme}://{'…@' if store.url.credentials.options else ''}{hosts}"
    # The text is not quoted: it may hold a password.
    if not all(re.fullmatch("[0-9]+", database) for database in databases):
        raise ValueError(f"{location}: the database is not a number; write it as {location}/0")
    if len(set(map(int, databases))) > 1:
        raise ValueError(f"{location}: the URL names two databases; keep the one after the / or the one of db=")
    return store


OnlineStore = Annotated[Store, AfterValidator(_check_redis_database)]

_MEMORY = re.compile(
    r"\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(b|bytes?|[kmgt](?:i?b)?|(?:kilo|mega|giga|tera)bytes?)\s*",
    re.ASCII | re.IGNORECASE,
)


def _read_memory(value: Any) -> str | None:
    """Return an amount of memory as DuckDB takes it; raises ValueError for any other."""
    if value is None:
        return None
    text = str(value)
    if text in ("none", "null") or text.startswith("-"):  # no bound
        return text
    match = _MEMORY.fullmatch(text)
    fits = False
    if match is not None:
        number, unit = float(match[1]), match[2].lower()
        size = number * (1024 if "ib" in unit else 1000) ** ("kmgt".find(unit[0]) + 1)
        fits = 1e6 <= size < 2**64
    if not fits:
        raise ValueError(f"{text!r} is not an amount of memory: write 1MB or more, for example 4GB or 512MiB")
    return text


Memory = Annotated[str | None, BeforeValidator(_read_memory)]


class _Group(BaseModel):
    """Settings that belong together. Bools are refused: pydantic would take them for 0 or 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"{str(value).lower()} is neither a number nor a text")
        return value


class EngineLimits(_Group):
    """Bounds of the embedded engine."""

    memory_limit: Memory = None
    """How much memory DuckDB may use, for example ``4GB``; by default four fifths of the machine's."""
    threads: int | None = Field(default=None, ge=1, le=1_024)
    """How many threads DuckDB uses, at most 1024; by default one for each core."""
    temp_directory: str | None = None
    """The folder to which DuckDB spills what does not fit into memory."""


class ServerSettings(_Group):
    """How `fs serve` serves."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback a token is needed."""
    port: int = Field(default=6566, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    workers: int = Field(default=1, ge=1, le=256)
    """How many processes serve."""
    auth: Literal["auto", "required"] = "auto"
    """``required``: every request needs a token. ``auto``: not on loopback, until the server has seen a token."""
    refresh: Duration = timedelta(seconds=10)
    """How often the server looks for a new revision of the definitions."""
    max_clock_skew: Duration = timedelta(seconds=5)
    """How far ahead of the server's clock a pushed row's times may be."""
    max_body: ByteSize = ByteSize(1_000_000)
    """The largest request body, in bytes or as ``2MB``."""


def _check_origin(url: str) -> str:
    # Browsers leave out the scheme's own port.
    if url and not re.fullmatch(r"(https(?!.*:443$)|http(?!.*:80$))://([a-z0-9.\-]+|\[[0-9a-f:]+\])(:\d{1,5})?", url):
        raise ValueError("write it as https://HOST, or https://HOST:PORT for another port than 443, in lower case")
    return url


def _check_network(text: str) -> str:
    ip_network(text)
    return text


class RegistryServerSettings(_Group):
    """Whom `fs registry serve` lets in besides those with a token: people of an OpenID Connect provider."""

    oidc_issuer: str | None = None
    """The provider's URL, as in the claim ``iss`` of its tokens; by default there is none."""
    oidc_audience: str = ""
    """The claim ``aud`` of tokens for this registry: its client id at the provider."""
    oidc_client_secret: SecretStr = SecretStr("")
    """The client's secret at the provider, if it has one: write ``${NAME}`` for an environment variable."""
    oidc_cli_client_id: str = ""
    """The client id of `fs login` at the provider, without a secret; by default ``oidc_audience``, if that has none.
    Its tokens are good for logins alone."""
    oidc_scopes: list[str] = ["openid", "email"]
    """What a login asks the provider for; some give the claim below for a scope of its own alone."""
    oidc_claim: str = "groups"
    """The claim that says which groups or roles somebody has at the provider."""
    oidc_roles: dict[str, str] = {}
    """By a value of that claim: a role for every project, or ``role:project``, for example ``editor:ranking``."""
    trusted_proxies: list[Annotated[str, AfterValidator(_check_network)]] = []
    """Addresses or networks of proxies: the audit then names whom they say they ask for (``X-Forwarded-For``)."""
    public_url: Annotated[str, AfterValidator(_check_origin)] = ""
    """This server's URL as browsers know it, for example ``https://registry.example``; by default where it listens."""
    session: Duration = timedelta(hours=12)
    """How long somebody who logged in stays so."""


class JournalSettings(_Group):
    """How long the registry's journal remembers. `fs gc` removes what is older."""

    retention: Duration = timedelta(days=90)
    """How long it keeps commits, publishes, what was pushed online only, and what servers served."""
    audit_retention: Duration | None = None
    """How long it keeps who changed what (`fs audit`); by default for ever. Only `fs gc` on the database itself removes
    it, no token does."""


LEAST_SECRET = 16
"""Characters of the secret of served logs, at least."""


class ServedSettings(_Group):
    """How feature servers keep what they answered, for services that are declared with a log."""

    secret: SecretStr = SecretStr("")
    """Join keys in the log are hashed with it: a random text of 16 characters or more, the same for all servers of the
    project. Write ``${NAME}`` for an environment variable."""
    earlier_secrets: list[SecretStr] = []
    """Secrets that servers had before: what was hashed with them can be read and forgotten."""

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr) -> SecretStr:
        text = secret.get_secret_value()
        if text and len(text.strip()) < LEAST_SECRET:  # its length is not told
            raise ValueError(
                f"it is shorter than {LEAST_SECRET} characters, so whoever has the log could find it by trying: make "
                "one with `openssl rand -hex 32`; a shorter one that servers had goes into earlier_secrets"
            )
        return secret


class MonitorSettings(_Group):
    """Where ``fs monitor --webhook`` sends alarms. No definition and no registry has them."""

    webhook_url: Annotated[SecretStr, AfterValidator(webhook.check_url)] = SecretStr("")
    """An https URL; http on this machine alone. Neither redirects nor proxies are used. It may hold a token: write
    ``${NAME}`` for an environment variable."""
    webhook_secret: Annotated[SecretStr, AfterValidator(webhook.check_secret)] = SecretStr("")
    """Messages are signed with it: 16 characters or more."""


_GROUPS: dict[str, type[BaseModel]] = {
    "engine": EngineLimits,
    "server": ServerSettings,
    "registry_server": RegistryServerSettings,
    "journal": JournalSettings,
    "served": ServedSettings,
    "monitor": MonitorSettings,
}


class _Environment(EnvSettingsSource):
    """``FS_ONLINE_STORE`` sets the URL, ``FS_ONLINE_STORE__OPTION`` sets one option."""

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        if field_name == "project" or value is None:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        return {"url": value, **self.explode_env_vars(field_name, field, self.env_vars)}


class Settings(BaseSettings):
    """A project's settings. The environment wins over the file."""

    model_config = SettingsConfigDict(
        env_prefix="FS_", env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    project: Annotated[str, AfterValidator(check_object_name)]
    """The project's name, part of every key and path: a lower-case letter, then at most 62 of a-z, 0-9 and _."""
    registry: Store = StoreSettings(url="sqlite:///data/registry.db")
    """Where definitions and the ledger of runs are kept."""
    offline_store: Store = StoreSettings(url="data/offline")
    """Where the Delta tables are that training sets are built from. The path may hold no %XX, [ ] ^ | and backslashes:
    the library that reads the tables misreads them."""
    online_store: OnlineStore = StoreSettings(url="lmdb:///data/online")
    """Where the newest values are, for serving."""
    engine: EngineLimits = EngineLimits()
    """Bounds of DuckDB, which reads sources and joins training sets."""
    server: ServerSettings = ServerSettings()
    """How ``fs serve`` serves."""
    registry_server: RegistryServerSettings = RegistryServerSettings()
    """Whom ``fs registry serve`` lets in."""
    journal: JournalSettings = JournalSettings()
    """How long the registry's journal remembers."""
    served: ServedSettings = ServedSettings()
    """How feature servers keep what they answered."""
    monitor: MonitorSettings = MonitorSettings()
    """Where alarms are sent to."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the file; no dotenv and no secrets folder."""
        return _Environment(settings_cls), init_settings


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: PyYAML would silently take the last.

    ``on``, ``off``, ``yes`` and ``no`` stay texts, as in YAML 1.2; PyYAML would turn them into bools.
    """

    # Checked here and not in construct_mapping: there `<<` may have added keys that may rightly appear twice.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as written. Raises YAMLError for a key that is given twice."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    where = f"in line {lines[name]} and again in line {line}"
                    raise yaml.YAMLError(f"{key.value} is given {where}: keep one of them.")
                lines[name] = line
        return node


_Loader.yaml_implicit_resolvers = {
    first: [found for found in resolvers if first in "tTfF" or found[0] != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def repo_folder(repo: str | Path) -> Path:
    """Return the absolute path of a feature repo; raises SettingsError where the working directory is gone."""
    try:
        return Path.cwd() / Path(repo).resolve()
    except FileNotFoundError:
        raise SettingsError("The working directory was deleted.", hint="Change to a folder that exists.") from None


def read_settings(folder: Path) -> Settings:
    """Read ``feature_store.yaml`` of a folder.

    Raises SettingsError when the file is missing or not a YAML mapping, a key is unknown or given twice, or a
    ``${VAR}`` is not set.
    """
    path = folder / FILE_NAME
    try:
        document = _load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = f"There is no {FILE_NAME} in {folder}" if folder.is_dir() else f"There is no folder {folder}"
        hint = "Run `fs init DIR` for a new repo, or pass --repo DIR, the folder of its feature_store.yaml."
        raise SettingsError(f"{what}.", hint=hint) from None
    except OSError as error:
        hint = "Make it a file that you may read, or pass --repo DIR for another repo."
        raise SettingsError(f"{path} cannot be read: {error.strerror}.", hint=hint) from None
    except UnicodeDecodeError as error:
        hint = "Save it as UTF-8 text."
        raise SettingsError(f"{path} is not UTF-8 at byte {error.start}.", hint=hint) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} cannot be read: {_yaml_problem(error)}", hint="Correct its YAML.") from None
    if not isinstance(document, dict):
        hint = "Write at least the line `project: NAME`; `fs init DIR` makes a whole one to start from."
        raise SettingsError(f"{path} must hold a mapping that starts with `project:`.", hint=hint)
    return make_settings(document, where=str(path))


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Return what is wrong and where, without PyYAML's excerpt of the file: it may hold a password."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    problem = re.sub(r"'[^']{2,}'", "…", str(getattr(error, "problem", None) or "this is no YAML"))
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}."


ALARM_VARIABLES = ("FS_ALARM_MONITOR", "FS_ALARM_STATE", "FS_ALARM_IDS", "FS_ALARM_REPORT")
"""What the command of an alarm is told, which is most often one that opens a store."""

_OTHER_VARIABLES = {
    *ALARM_VARIABLES,
    "FS_SERVER_TOKEN",
    "FS_REGISTRY_TOKEN",
    "FS_REGISTRY_TOKEN_FROM",
    "FS_REGISTRY_PLAIN_HTTP",
    "FS_CRASH_AT",
}
"""Variables that are not settings: tokens, hosts without TLS, and the point where tests kill a process."""
_told: set[str] = set()


def _warn_of_unknown_variables() -> None:
    """Warn, once in each process, of variables that look like settings but that nothing reads."""
    settings = {f"FS_{name.upper()}" for name in Settings.model_fields}
    groups = {f"FS_{group.upper()}": model for group, model in _GROUPS.items()}
    known = {f"{group}__{name.upper()}" for group, model in groups.items() for name in model.model_fields}
    known |= settings - groups.keys() | _OTHER_VARIABLES - {"FS_CRASH_AT", *ALARM_VARIABLES}
    for name in sorted(set(map(str.upper, os.environ)) - settings - _OTHER_VARIABLES - _told):
        if name.startswith("FS_") and name.partition("__")[0] not in settings:
            _told.add(name)
            logger.warning("The environment variable %s is not a setting: %s", name, did_you_mean(name, known))


def make_settings(document: Mapping[str, Any], *, where: str = "settings") -> Settings:
    """Make settings from a mapping as in the file; the environment wins. Raises SettingsError.

    Warns of ``FS_`` variables that nothing reads.
    """
    _warn_of_unknown_variables()
    try:
        # Stores that the file leaves out get their default URL here, so that the environment may set only an option.
        defaults = {name: field.default for name, field in Settings.model_fields.items()}
        values: dict[str, Any] = {k: {"url": v.url} for k, v in defaults.items() if isinstance(v, StoreSettings)}
        values |= {str(key): _read_store(_substitute(value)) for key, value in document.items()}
        if isinstance(values.get("project"), dict):
            values["project"] = values["project"].get("url")
        return Settings(**values)
    except ValidationError as error:
        raise _settings_error(where, error) from None


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _substitute(value: Any) -> Any:
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _variable(match[1]), value)
    if isinstance(value, dict):
        return {key: _substitute(item) for key, item in value.items()}
    return [_substitute(item) for item in value] if isinstance(value, list) else value


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise SettingsError(
            f"The settings use ${{{name}}}, which is not set.", hint=f"Run `export {name}=…`."
        ) from None


def _variable_of(place: Sequence[Any]) -> str | None:
    """Return the environment variable that a setting came from, None where it came from the file."""
    group = place[:-1] if place[-1] == "url" else place
    names = ["FS_" + "__".join(map(str, parts)).upper() for parts in ((*group, "url"), place, group)]
    given = {name.upper(): name for name in os.environ}
    return next((given[name] for name in names if name in given), None)


def _settings_error(where: str, error: ValidationError) -> SettingsError:
    errors = error.errors(include_url=False, include_input=False)
    # A misspelt key is also a missing one: report the unknown key first, because that is the mistake.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    # Anything that is not a name, such as a URL where a key should be, may hold a password.
    path = ".".join(str(part) if re.fullmatch(r"[\w-]+", str(part)) else "…" for part in first["loc"])
    variable = _variable_of(first["loc"])
    if variable is not None:
        where = f"The environment variable {variable}"
    if first["type"] == "extra_forbidden":
        owner = _GROUPS.get(str(first["loc"][0]), Settings) if len(first["loc"]) > 1 else Settings
        known = list(owner.model_fields)
        if variable is not None and "__" not in variable:
            hint = f"It names a group: set one of {', '.join(f'{variable}__{name.upper()}' for name in known)}."
            return SettingsError(f"{where} is not a setting.", hint=hint, key=path)
        return SettingsError(
            f"{where}: {path} is not a setting.", hint=did_you_mean(str(first["loc"][-1]), known), key=path
        )
    return SettingsError(f"{where}: {path}: {first['msg'].removeprefix('Value error, ')}.", key=path)
