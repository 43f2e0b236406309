"""Write the reference pages that are made from the code: ``python docs/generate.py`` (``--check`` only compares).

A page is never edited by hand: what it says is in the docstrings, option helps and tables that it is made of. A test
compares the committed pages with what this writes.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from sphinx.pycode import ModuleAnalyzer

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTICE = "<!-- Made from the code by docs/generate.py: do not edit. -->\n"


def main() -> None:
    """Write every page, or say which are out of date."""
    parser = argparse.ArgumentParser(description="Write the reference pages that are made from the code.")
    parser.add_argument("--check", action="store_true", help="compare only; exit with 1 when a page is out of date")
    options = parser.parse_args()
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not options.check:
                path.write_text(text, encoding="utf-8")
    print("\n".join(f"{'out of date' if options.check else 'written'}: {name}" for name in stale) or "up to date")
    sys.exit(1 if stale and options.check else 0)


def pages() -> dict[str, str]:
    """Return the text of every generated page by file name."""
    makers: dict[str, Callable[[], Iterable[str]]] = {
        "errors.md": errors_page,
        "http.md": http_page,
        "registry.md": registry_page,
        "settings.md": settings_page,
        "steps.md": steps_page,
        "types.md": types_page,
    }
    return {name: NOTICE + "\n" + "\n".join(make()).rstrip() + "\n" for name, make in makers.items()}


# Settings


def settings_page() -> Iterable[str]:
    from featurestore import backends
    from featurestore.project import settings

    yield "# Settings\n"
    yield SETTINGS_HEAD
    yield from settings_table(settings.Settings, "")
    for setting, schemes in backends.BACKENDS.items():
        yield f"## {setting}\n"
        yield "| URL | What it is |\n|---|---|"
        yield from (f"| `{URLS[setting, scheme][0]}` | {URLS[setting, scheme][1]} |" for scheme in schemes)
        yield ""
    yield REDIS_OPTIONS
    yield "## engine\n"
    yield from settings_table(settings.EngineLimits, "engine.")
    yield "## server\n"
    yield from settings_table(settings.ServerSettings, "server.")
    yield "## registry_server\n"
    yield from settings_table(settings.RegistryServerSettings, "registry_server.")
    yield "\n## journal\n"
    yield from settings_table(settings.JournalSettings, "journal.")
    yield "\n## served\n"
    yield from settings_table(settings.ServedSettings, "served.")
    yield "\n## monitor\n"
    yield from settings_table(settings.MonitorSettings, "monitor.")
    yield ENVIRONMENT


SETTINGS_HEAD = """\
A feature repo's settings are in its `feature_store.yaml`. An unknown key is an error that names the closest one.

```yaml
project: nyc_flights
registry: sqlite:///data/registry.db
offline_store: data/offline
online_store:                                 # a URL, or a mapping with options
  url: redis://:${REDIS_PASSWORD}@localhost:6379/0
  read_timeout_ms: 80
engine: {memory_limit: 4GB}
server: {port: 6566, workers: 4}
```

`${NAME}` is replaced by the environment variable, and an unset one is an error. Relative paths (bare, or after three
slashes) are relative to the folder of `feature_store.yaml`; four slashes make an absolute path. Durations are written
`500ms`, `10s`, `5m`, `2h`, `1d`.
"""

URLS = {
    ("registry", "sqlite"): ("sqlite:///data/registry.db", "a SQLite file, on a local disk"),
    ("registry", "postgresql"): (
        "postgresql://user@host:5432/database",
        "a PostgreSQL database; the password in `PGPASSWORD` or `~/.pgpass`. Needs `pip install '.[postgres]'`",
    ),
    ("registry", "https"): (
        "https://registry.example",
        "a registry behind [`fs registry serve`](../how-to/registry.md); the token in `FS_REGISTRY_TOKEN`. "
        "Needs `pip install '.[client]'`",
    ),
    ("registry", "http"): ("http://127.0.0.1:6570", "the same without TLS, on loopback alone"),
    ("offline_store", ""): ("data/offline", "a folder"),
    ("offline_store", "file"): ("file:///data/offline", "the same, written as a URL"),
    ("online_store", "lmdb"): (
        "lmdb:///data/online",
        "an embedded store in a folder: many processes read while one writes",
    ),
    ("online_store", "redis"): ("redis://user:password@host:6379/0", "one Redis (6.2 or later) or Valkey server"),
    ("online_store", "rediss"): ("rediss://host:6379/0", "the same over TLS"),
    ("online_store", "redis+cluster"): (
        "redis+cluster://user:password@host1:6379,host2:6379",
        "a Redis Cluster (Redis 7.0 or later, or Valkey); one of its nodes is enough, more are asked when it is down",
    ),
    ("online_store", "rediss+cluster"): ("rediss+cluster://host1:6379,host2:6379", "the same over TLS"),
}

REDIS_OPTIONS = """\
Options besides the URL for a Redis or a cluster:

| Option | Default | What it is |
|---|---|---|
| `read_timeout_ms` | 50 | how long an online read waits on an open connection; reads are never retried |
| `write_timeout_ms` | 5000 | how long a publish waits for each answer; it retries lost connections for about as long |
"""

ENVIRONMENT = """\
## Environment variables

The environment wins over the file. The name of a setting sets its URL; add an option's name after two underscores.

| Variable | Sets |
|---|---|
| `FS_PROJECT` | `project` |
| `FS_REGISTRY`, `FS_OFFLINE_STORE`, `FS_ONLINE_STORE` | the URL of a store, in place of the file's whole setting |
| `FS_ONLINE_STORE__READ_TIMEOUT_MS` | an option besides a URL from the environment |
| `FS_ENGINE__MEMORY_LIMIT`, `FS_SERVER__PORT`, … | one key of `engine` or `server` |
| `FS_SERVER_TOKEN` | the token of `fs serve`, 32 characters or more; the file, which is committed, cannot hold it |
| `FS_REGISTRY_TOKEN` | the token for a registry behind HTTP; the file, which is committed, cannot hold it |
| `FS_REGISTRY_TOKEN_FROM` | the token that reads the project that `fs promote` takes from, if the other may not |
| `FS_REGISTRY_PLAIN_HTTP` | hosts, separated by commas, that are reached without TLS, in a network of your own |
| `FS_ALARM_MONITOR`, `FS_ALARM_STATE`, `FS_ALARM_IDS`, `FS_ALARM_REPORT` | set for the command of an alarm |
| `FS_CRASH_AT` | for tests: [the point at which the process ends itself](steps.md) |
"""


def settings_table(model: Any, prefix: str) -> Iterable[str]:
    from pydantic import BaseModel

    documents = ModuleAnalyzer.for_module(model.__module__).find_attr_docs()
    yield "| Setting | Default | What it is |\n|---|---|---|"
    for name, field in model.model_fields.items():
        if field.is_required():
            default = "required"
        elif hasattr(field.default, "url"):
            default = f"`{field.default.url}`"
        elif isinstance(field.default, BaseModel):
            default = f"[see below](#{name})"
        elif field.default is None:
            default = "none"
        elif hasattr(field.default, "total_seconds"):
            default = f"`{field.default.total_seconds():g}s`"
        else:
            default = f"`{field.default}`"
        yield f"| `{prefix}{name}` | {default} | {cell(prose(' '.join(documents[model.__name__, name])))} |"
    yield ""


# HTTP


def http_page() -> Iterable[str]:
    from featurestore.server.watch.metrics import Metrics

    document = openapi()
    yield "# HTTP API\n"
    yield HTTP_HEAD
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from operation_section(document, method, path, operation)
    yield "## Errors\n"
    yield HTTP_ERRORS
    yield f"```json\n{as_json(document['components']['schemas']['Error']['examples'][0])}\n```\n"
    yield "| Type | Status | When | In the Python client |\n|---|---|---|---|"
    found = error_types()
    assert set(found) == set(ERROR_TYPES), set(found) ^ set(ERROR_TYPES)
    for kind, when in sorted(ERROR_TYPES.items(), key=lambda item: found[item[0]]):
        yield f"| `{kind}` | {found[kind]} | {cell(when)} | {client_error(kind, found[kind])} |"
    yield "\n## Metrics\n"
    yield "| Metric | Kind | What it is |\n|---|---|---|"
    for metric in Metrics()._registry.collect():
        suffix = "_total" if metric.type == "counter" else ""
        yield f"| `{metric.name}{suffix}` | {metric.type} | {cell(metric.documentation)} |"


# The registry's HTTP API


def registry_page() -> Iterable[str]:
    from featurestore_registry.auth import Role
    from featurestore_registry.http.access import JOURNAL, LEDGER, OPEN_PATHS, SESSION_PATH, Access
    from featurestore_registry.http.server import create_app
    from featurestore_registry.sql import open_registry

    with tempfile.TemporaryDirectory() as folder, open_registry(f"sqlite:///{folder}/registry.db") as registry:
        app: Any = create_app(registry, Access(registry), judge=lambda *_: {})
        routes = app._app._app.openapi()["paths"]
    yield "# The registry over HTTP\n"
    yield REGISTRY_HEAD
    yield "## Routes\n"
    yield "| Route | Least role | What it does |\n|---|---|---|"
    for path, methods in routes.items():
        for method, operation in methods.items():
            by_kind = path.endswith(("/ledger", "/journal", "/journal/newest"))
            least = "none" if path in OPEN_PATHS else "[by kind](#kinds)" if by_kind else least_role(method, path)
            least = "a person" if path == SESSION_PATH else least
            yield f"| `{method.upper()} {path}` | {least} | {cell(operation['summary'])} |"
    yield "\n## Kinds\n"
    yield "What a request names a kind of in `kind`. Of a kind that is not here nobody reads or writes anything.\n"
    yield "| Kind | Read by | Written by |\n|---|---|---|"
    for name, kinds in (("ledger", LEDGER), ("journal", JOURNAL)):
        for kind, needs in kinds.items():
            path = f"/api/v1/{name}"
            found = [least_role(method, path, kind) for method in ("get", "post")]
            written = str(Role.ADMIN if needs.is_server else needs.write or "the server alone")
            assert found == [str(needs.read), written]
            written = f"feature servers ({needs.write}, made with `--server`), admin" if needs.is_server else written
            yield f"| `{kind}` in the {name} | {found[0]} | {written} |"


def least_role(method: str, path: str, kind: str = "") -> str:
    """Return the least role whose token of the project may do a request, by asking what guards the routes."""
    from featurestore_registry.auth import Role, Token
    from featurestore_registry.errors import AuthError
    from featurestore_registry.http.access import permit

    kind = kind or ("run" if path.endswith(("/ledger", "/journal")) else "")
    query = f"project=p&kind={'commit' if kind == 'run' and 'journal' in path else kind}".encode()
    for role in Role:
        try:
            permit({"path": path, "method": method.upper(), "query_string": query}, Token("id", "", role, "p"))
        except AuthError:
            continue
        return str(role)
    return "the server alone"


REGISTRY_HEAD = """\
`fs registry serve` answers these; [share a registry](../how-to/registry.md) says how to run it. `GET /openapi.json`,
which wants an admin's token for every project, describes parameters and bodies. Pages for browsers (`/`, `/login`) are
not among them. The header is `Authorization: Bearer TOKEN`; for a GET the cookie of somebody who logged in by browser
is enough. A token that is bound to a project is good for requests about it alone. Each role may do what those before it
may: viewer, reader, operator, editor, admin. The hashes of tokens are shown to tokens made with
`fs token create --server`, to no others.
"""


def error_types() -> dict[str, int]:
    """Return the status of every type of error that the server's code names."""
    from featurestore_registry.auth import middleware

    from featurestore import server
    from featurestore.server.app import _KINDS
    from featurestore.server.http.errors import _ANSWERS

    found = {answer.kind: answer.status for answer in _ANSWERS.values()}
    found |= {kind: status for status, kind in {**middleware._TYPES, **_KINDS, 503: "not_ready"}.items()}
    for path in Path(server.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            constants = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if called == "check_count":
                found[str(constants[0])] = 413
            elif called in ("RequestError", "self._refuse") and len(constants) > 1:
                status, kind = constants[:2]
                found[str(kind)] = int(status[:3] if isinstance(status, bytes) else str(status))
    return found


def client_error(kind: str, status: int) -> str:
    """Return what `FeatureClient` raises for an error of the server."""
    import httpx

    from featurestore.client.failures import error_of

    body = json.dumps({"error": {"type": kind, "message": "", "details": {}}}).encode()
    return f"`{type(error_of('', httpx.Response(status), body)).__name__}`"


HTTP_ERRORS = """\
Every error is such a document; the details hold the request id, which is also the header `X-Request-ID`, and the facts
of the message as data. No stack trace leaves the server.
"""

ERROR_TYPES = {
    "bad_request": "The request is not HTTP.",
    "malformed_json": "The body is not JSON.",
    "unauthorized": "A token is missing, unknown, expired or revoked.",
    "forbidden": "The token's role is not enough, or it is for another project.",
    "not_found": "No such feature view, feature, service or push source.",
    "no_such_route": "No such path.",
    "method_not_allowed": "The path exists, but not with this method.",
    "request_timeout": "The request did not arrive within 10 seconds of its first byte.",
    "too_many_entities": "Over 1,000 entity rows.",
    "too_many_features": "Over 500 features.",
    "too_many_rows": "A push, or predictions, of more than 1,000 rows.",
    "too_many_values": "More than 100 predictions for each row.",
    "body_too_large": "The body is larger than `server.max_body`.",
    "unsupported_media_type": "The body is not `application/json`, or it is compressed.",
    "misdirected_request": "A server without tokens was asked under another host's name than `localhost`.",
    "invalid_request": "A key of the body is missing, unknown or of another type; the message says what is allowed.",
    "invalid_input": "Columns have different lengths, or another part of the input is wrong.",
    "entity_key": "A join key is missing or ill-typed; the message names it and its row.",
    "value_type": "A value does not fit its declared type; the message names column and row.",
    "output_name_clash": "Two features have one name: ask with `full_feature_names`.",
    "headers_too_large": "The headers are larger than 64 KiB.",
    "on_demand_failed": "An on-demand function failed; the server's log says how.",
    "damaged_record": "A record's checksum is wrong: `fs verify`, then `fs materialize --republish`.",
    "internal_error": "Anything else; the server's log says more. Please report it.",
    "code_mismatch": "The code of an on-demand function differs from what was applied; other features are answered.",
    "online_store_unavailable": "The online store does not answer. `Retry-After` says when to try again.",
    "online_store_full": "The online store has no room for pushed rows.",
    "online_store_failed": "The online store did not keep what was pushed, for example as it evicts records meanwhile.",
    "offline_store_unavailable": "The offline store did not take pushed rows.",
    "disk_full": "The offline store's disk is full.",
    "mismatch": "The stores do not belong to the registry: `fs doctor` says which, `fs repair` settles it.",
    "registry_unavailable": "The registry does not answer; only pushes that go offline need it.",
    "not_ready": "Only from `/ready`: the online store does not answer.",
    "on_demand_busy": "On-demand functions keep a worker's threads busy. `Retry-After` says when to try again.",
    "overloaded": "The worker has 900 connections. `Retry-After` says when to try again.",
}

HTTP_HEAD = """\
`fs serve` answers at `http://127.0.0.1:6566` by default. Beyond loopback, and once the server has seen a token, every
request except `/health` and `/ready` needs `Authorization: Bearer <token>`. The running server describes
itself at `/openapi.json`, and `/docs` is a page to try requests from; its scripts come from the server.

The examples ask a server of [the repo that `fs init` makes](../how-to/index.md), and push to the source that is
declared in [Push rows](../how-to/push.md). If the server has tokens, add `-H "authorization: Bearer $TOKEN"` to each.

Keys and values in columns, "any" below, have the JSON form of [their declared types](types.md).
"""


def operation_section(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterable[str]:
    yield f"## {method.upper()} {path}\n"
    yield operation["summary"] + "." + (" Open to everyone." if operation.get("security") == [] else "") + "\n"
    body = operation.get("requestBody")
    if body is not None:
        yield "**Request**\n"
        yield from schema_table(document, body["content"]["application/json"]["schema"])
        yield "**Answer**\n"
        yield from schema_table(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    yield "**Example**\n"
    yield operation["description"] + "\n"
    content = operation["responses"]["200"]["content"].get("application/json", {})
    if "example" in content:
        yield f"```json\n{as_json(content['example'])}\n```\n"


def as_json(value: Any) -> str:
    """Return a value as JSON with an inner object or list of values on one line each."""
    text = json.dumps(value, indent=2)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: json.dumps(json.loads(found[0])), text)


def schema_table(document: dict[str, Any], reference: dict[str, Any]) -> Iterable[str]:
    schema = document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
    if "description" in schema:
        yield schema["description"] + "\n"
    yield "| Key | Type | What it is |\n|---|---|---|"
    for name, found in schema["properties"].items():
        notes = [found.get("description", "")]
        default = found.get("default")
        if default not in (None, {}):
            notes.append(f"Default: `{default if isinstance(default, str) else json.dumps(default)}`.")
        if name in schema.get("required", ()):
            notes.append("Always there." if "Answer" in reference["$ref"] else "Required.")
        yield f"| `{name}` | {cell(schema_type(document, found))} | {cell(' '.join(filter(None, notes)))} |"
    yield ""


def schema_type(document: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return " or ".join(schema_type(document, found) for found in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type", "any")
    text = "empty list" if schema.get("maxItems") == 0 else " or ".join([kinds] if isinstance(kinds, str) else kinds)
    if "array" in text:
        text = text.replace("array", f"list of {schema_type(document, schema.get('items', {}))}")
    if isinstance(schema.get("additionalProperties"), dict):
        text = f"object of {schema_type(document, schema['additionalProperties'])}"
    elif "properties" in schema:
        text = "object of " + ", ".join(f"`{name}`" for name in schema["properties"])
    return text


def openapi() -> dict[str, Any]:
    """Return what the server of a small feature repo says of itself."""
    from featurestore import FeatureStore
    from featurestore.cli.commands.init import command
    from featurestore.server.app import create_app

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repo"
        assert command.callback is not None
        silent = click.echo
        click.echo = lambda *_, **__: None
        try:
            command.callback(root, "repo")
        finally:
            click.echo = silent
        with FeatureStore(root) as store:
            store.apply()
        document: dict[str, Any] = create_app(root).api.openapi()
        return document


# Errors


def errors_page() -> Iterable[str]:
    from featurestore import errors

    yield "# Errors\n"
    yield ERRORS_HEAD
    tree = (errors.__doc__ or "").split("\n\n", 1)[1]
    yield f"```text\n{tree.rstrip()}\n```\n"
    yield "The registry's:\n"
    registry = importlib.import_module("featurestore_registry.errors").__doc__ or ""
    yield f"```text\n{registry.split(chr(10) * 2, 1)[1].rstrip()}\n```\n"
    yield "| Error | Under | When |\n|---|---|---|"
    for name in errors.__all__:
        found = getattr(errors, name)
        if inspect.isclass(found):
            parent = found.__bases__[0].__name__
            under = f"`{parent}`" if parent != "Exception" else "`Exception`"
            yield f"| `{name}` | {under} | {cell(prose(found.__doc__))} |"


ERRORS_HEAD = """\
Every error that the product raises on purpose is a `FeatureStoreError` of `featurestore.errors`. Its `message` says
what was wrong, with the offending name and value; its `hint` says what to do next; its `details` hold the same facts as
data. On the command line `message` and `hint` are printed, with `--json` all three. An error that is none of these is a
defect: please report it.
"""


# Value types


def types_page() -> Iterable[str]:
    from featurestore.types import values

    yield "# Value types\n"
    yield "```python\nfrom featurestore.types import Array, Decimal, Float64, Int64, String, Timestamp\n```\n"
    yield (
        "No value changes its type or precision on the way: an Int64 of 19 digits with nulls around it comes back as "
        "that Int64. Instants are UTC microseconds; naive ones are read as UTC. Finer instants are rounded so that "
        "nothing leaks: **up** in the event and created times of rows, **down** everywhere else, in the times of "
        "entity frames and in features of type Timestamp alike.\n"
    )
    yield "| Type | Join key | Arrow | DuckDB | Python | JSON |\n|---|---|---|---|---|---|"
    from featurestore.types.arrow import arrow_type

    table = dict(table_rows(values.__doc__ or ""))
    for value_type in [*values.SCALARS.values(), values.Decimal(10, 2), values.Array(values.Int64)]:
        python, json = table[str(value_type)]
        name = {"Decimal(10,2)": "Decimal(p, s)", "Array(Int64)": "Array(T)"}.get(str(value_type), str(value_type))
        shown = f"for example `{value_type}`: " if name != str(value_type) else ""
        key = "yes" if value_type in values.JOIN_KEY_TYPES else ""
        arrow, duckdb = str(arrow_type(value_type)), values.duckdb_type(value_type)
        arrow = PYARROW_NAMES.get(arrow, arrow)
        yield f"| `{name}` | {key} | {shown}`{arrow}` | `{duckdb}` | {python} | {json} |"
    yield ""
    yield prose(values.Decimal.__doc__).replace("Return the type of exact decimals", "`Decimal(p, s)`: exact decimals")
    yield ""
    yield prose(values.Array.__doc__).replace("Return the type of lists", "`Array(T)`: lists") + "\n"
    yield "## Arrow\n"
    yield "| Declared | Takes from Arrow and Parquet | Gives |\n|---|---|---|"
    for value_type in values.SCALARS.values():
        given = PYARROW_NAMES.get(str(arrow_type(value_type)), str(arrow_type(value_type)))
        yield f"| `{value_type}` | {', '.join(arrow_names(value_type))} | `{given}` |"
    yield ARROW_TAIL
    yield (
        "A type may become wider without a new generation: Int32 to Int64, Float32 to Float64. How each is written "
        "online is on the page of the [wire format](wire-format.md).\n"
    )


def arrow_names(value_type: Any) -> Iterable[str]:
    """Yield the Arrow types that a source's column may have; those of any unit and zone in one word."""
    import pyarrow as pa

    from featurestore.types.arrow import fits, value_type_of

    names = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    names += ["float16", "float32", "float64", "bool_", "string", "large_string", "binary", "large_binary", "date32"]
    for kind in [*(getattr(pa, name)() for name in names), pa.binary(16)]:
        if fits(value_type, value_type_of(kind)):
            yield f"`{PYARROW_NAMES.get(str(kind), str(kind))}`"
    if fits(value_type, value_type_of(pa.timestamp("s"))):
        yield "`timestamp` of any unit, with or without a zone"


PYARROW_NAMES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "fixed_size_binary[16]": "fixed_size_binary",
}
"""What Arrow prints -> what its functions and documentation call it."""

ARROW_TAIL = """\
| `Decimal(p, s)` | `decimal128` with no more digits before and after the point | `decimal128(p, s)` |
| `Array(T)` | `list`, `large_list`, `fixed_size_list` of what T takes | `list` of what T gives |

A `dictionary` counts as the type of its values. A column without values in a file fits every type there: `null`, a
column of nulls, only NaN if no floats are declared; `list<null>` fits every list. `fs apply` refuses all other types,
with the column's name and type: cast it in the view's `sql`. Types without one of ours: `uint64`, times of day,
durations, structs, maps. A sum of integers in SQL, which DuckDB turns into a HUGEINT, counts as Int64; a larger value
ends the run with an error that names it.

Pandas turns integers with nulls among them into floats. So whole floats are accepted for Int32 and Int64, in a source's
files and in tables that you pass (entity frames, pushed rows): below 2^53, for float32 below 2^24, for float16 below
2^11. From there on a float stands for several integers; it is refused with its file or row, and so is one that is not
whole. Integers below 2^53 in files, or from SQL, are accepted for Float64. Tables that you pass may hold any integer
type whose values are in range.
"""


def table_rows(text: str) -> Iterable[tuple[str, tuple[str, str]]]:
    """Yield each type's Python and JSON form from the table at the head of the module of types."""
    rules = [line for line in text.splitlines() if line.startswith("===")]
    places = [(match.start(), match.end()) for match in re.finditer("=+", rules[0])]
    inside = text.split(rules[0])[2]
    for line in inside.strip("\n").splitlines():
        cells = [line[start : (end if place < 4 else None)].strip() for place, (start, end) in enumerate(places)]
        first = cells[0].replace("Decimal(p, s)", "Decimal(10,2)").replace("Array(T)", "Array(Int64)")
        names = [first] if "(" in first else first.replace("Float32, 64", "Float32, Float64").split(", ")
        yield from ((name, (cells[3], cells[4])) for name in names)


# Steps and crash points


def steps_page() -> Iterable[str]:
    yield "# Steps and crash points\n"
    yield STEPS_HEAD
    yield "| Step | Title |\n|---|---|"
    yield from (f"| `{name}` | {cell(title)} |" for name, title in sorted(calls("step")))
    yield "\n## Crash points\n"
    yield CRASH_HEAD
    yield "| Point | What has happened when it is passed |\n|---|---|"
    yield from (f"| `{name}` | {cell(what)} |" for name, what in sorted(calls("crash_point")))


STEPS_HEAD = """\
Long work runs in named steps. The command line shows a bar for each that takes over a second (plain lines without a
terminal), the logger `featurestore` logs their end, and a program can listen:

```python
from featurestore.steps import listening

with listening(lambda event: print(event.phase, event.title, event.done, event.total)):
    store.materialize_incremental()
```
"""

CRASH_HEAD = """\
A crash at any point leaves a consistent store, and the same command run again finishes the work. That is tested by
ending the process at each of these points: `FS_CRASH_AT=offline.committed` ends it the first time the point is passed,
`FS_CRASH_AT=publish.batch:3` the third time, without any clean-up and with exit code 137.

[Statistics](../how-to/explore.md) are the exception. A run that is killed, or that cannot write, between its commit
(`offline.committed`) and `statistics.kept` leaves none of the rows that it appended, and no later run makes them up, as
long as earlier runs of the view left some. Where its generation has none at all, the next run counts the whole log.
"""


def calls(function: str) -> set[tuple[str, str]]:
    """Return name and text of every ``step(...)`` or ``crash_point(...)`` in the source: none need be imported."""
    import featurestore

    found = set()
    for path in Path(featurestore.__path__[0]).rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if f"{function}(" in source else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == function and node.args:
                name, text = node.args[0], node.args[1] if len(node.args) > 1 else node.args[0]
                if isinstance(name, ast.Constant):
                    found.add((name.value, title_text(text)))
    return found


def title_text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
    return "".join(parts)


# Text


def prose(text: str | None) -> str:
    """Return a docstring as Markdown: literals in single backticks."""
    return inspect.cleandoc(text or "").replace("``", "`")


def cell(text: str) -> str:
    """Return a text as the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
