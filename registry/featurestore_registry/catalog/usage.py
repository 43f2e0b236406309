"""How programs read a definition: the text that somebody copies first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_EXAMPLES = {
    "String": "...",
    "Bytes": "...",
    "Int32": 1,
    "Int64": 1,
    "Float32": 1.5,
    "Float64": 1.5,
    "Bool": True,
    "Timestamp": "2026-01-31T12:00:00Z",
    "Date": "2026-01-31",
}
"""By type; of other types it is the text that stands for anything."""


class Usage(NamedTuple):
    """The same read in several languages."""

    python: str
    training: str
    curl: str
    cli: str


def usage(
    references: Sequence[str], service: str, keys: Mapping[str, str], request: Mapping[str, str] | None = None
) -> Usage:
    """Return how features are read, by references or as a service.

    ``keys`` are join keys and their types, ``request`` the columns that a caller brings for on-demand features.
    """
    values = {name: _EXAMPLES.get(kind, "...") for name, kind in keys.items()}
    brought = {name: _EXAMPLES.get(kind, "...") for name, kind in (request or {}).items()}
    row = ", ".join(f"{_quoted(name)}: {_python(value)}" for name, value in {**values, **brought}.items())
    asked = _quoted(service) if service else f"[{', '.join(map(_quoted, references))}]"
    body = {
        **({"feature_service": service} if service else {"features": list(references)}),
        "entities": {name: [value] for name, value in values.items()},
        **({"request_data": {name: [value] for name, value in brought.items()}} if brought else {}),
    }
    wanted = f"--service {shlex.quote(service)}" if service else f"--features {shlex.quote(','.join(references))}"
    pairs = [f"--entity {shlex.quote(f'{name}={_plain(value)}')}" for name, value in {**values, **brought}.items()]
    opened = 'from featurestore import FeatureStore\n\nstore = FeatureStore(".")\n'
    between = " \\\n  " if len(pairs) > 1 else " "
    return Usage(
        python=f"{opened}answer = store.get_online_features(\n    {asked},\n    [{{{row}}}],\n)\nanswer.to_dict()",
        training=(
            f"{opened}# a row for each example: {', '.join([*values, *brought, 'event_timestamp'])}\n"
            "frame = ...\n"
            f"training = store.get_historical_features(\n    frame,\n    {asked},\n)\ntraining.to_pandas()"
        ),
        curl=(
            "curl http://localhost:6566/v1/online-features \\\n"
            '  -H "Authorization: Bearer $FS_TOKEN" \\\n'
            '  -H "Content-Type: application/json" \\\n'
            f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
        ),
        cli=between.join([f"fs online {wanted}", *pairs]),
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _python(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else repr(value)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
