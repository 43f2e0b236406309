"""How programs read a definition: the text that somebody copies first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_EXAMPLES = {"String": "...", "Bytes": "...", "Int32": 1, "Int64": 1, "Bool": True, "Date": "2026-01-31"}


class Usage(NamedTuple):
    """The same read in several languages."""

    python: str
    training: str
    curl: str
    cli: str


def usage(references: Sequence[str], service: str, keys: Mapping[str, str]) -> Usage:
    """Return how features are read, by references or as a service; ``keys`` are columns and their types."""
    values = {name: _EXAMPLES.get(kind, "...") for name, kind in keys.items()}
    asked = repr(service) if service else f"[{', '.join(map(_quoted, references))}]"
    asked = _quoted(service) if service else asked
    row = ", ".join(f"{_quoted(name)}: {_python(value)}" for name, value in values.items())
    body = {
        **({"feature_service": service} if service else {"features": list(references)}),
        "entities": {name: [value] for name, value in values.items()},
    }
    wanted = f"--service {shlex.quote(service)}" if service else f"--features {shlex.quote(','.join(references))}"
    given = " ".join(f"--entity {shlex.quote(f'{name}={_plain(value)}')}" for name, value in values.items())
    return Usage(
        python=(
            "from featurestore import FeatureStore\n\n"
            f'store = FeatureStore(".")\nanswer = store.get_online_features({asked}, [{{{row}}}])\nanswer.to_dict()'
        ),
        training=(
            f"frame = ...  # {', '.join([*values, 'event_timestamp'])}, and your label\n"
            f"training = store.get_historical_features(frame, {asked})\ntraining.to_pandas()"
        ),
        curl=(
            "curl http://localhost:6566/v1/online-features \\\n"
            '  -H "Authorization: Bearer $FS_TOKEN" -H "Content-Type: application/json" \\\n'
            f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
        ),
        cli=f"fs online {wanted} {given}",
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _python(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else repr(value)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
