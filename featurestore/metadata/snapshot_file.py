"""The last good definitions on disk, for a server that starts while the registry is away.

The file holds what a server needs of the registry and nothing else: the records of one revision and the hashes of
the tokens. It is readable by its owner only, replaced atomically, and checked against its own checksum.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from featurestore_registry.auth import Token
from featurestore_registry.errors import UPGRADE_HINT
from featurestore_registry.records import Chain, Record, RecordField, Revision, canonical_json

from featurestore.errors import DiskFullError, RegistryFormatError, RegistryUnavailableError

FORMAT_VERSION = 1
FILE_NAME = Path(".featurestore", "snapshot.json")
"""Where it lies in a feature repo."""

DELETE_HINT = "Delete the file and start the server while the registry can be reached."


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """What a server knows of the registry."""

    revision: Revision
    tokens: tuple[Token, ...]
    seen_us: int
    """When the registry last confirmed it, UTC microseconds."""


def save_snapshot(path: Path, saved: SavedSnapshot) -> None:
    """Replace the file, durably and in one step; readers see the old one or the new one, whole.

    Raises DiskFullError, or RegistryUnavailableError when the folder cannot be written; the old file then stays.
    """
    content = {
        "project": saved.revision.project,
        "revision": saved.revision.number,
        "chain": list(saved.revision.chain.hashes),
        "records": [asdict(record) for record in saved.revision.records],
        "tokens": [token.to_document() for token in saved.tokens],
    }
    document = {"format": FORMAT_VERSION, "checksum": _checksum(content), "snapshot": content}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp gives the file to its owner alone, under a name that no other worker uses.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(canonical_json(document).encode())
                file.flush()
                os.fsync(file.fileno())
            _set_seen(Path(temporary), saved.seen_us)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _translated(path, error) from None


def confirm_snapshot(path: Path, seen_us: int) -> None:
    """Note that the registry still holds what the file holds. Raises RegistryUnavailableError as `save_snapshot`."""
    try:
        _set_seen(path, seen_us)
    except OSError as error:
        raise _translated(path, error) from None


def read_snapshot(path: Path, project: str) -> SavedSnapshot | None:
    """Return what was saved last, or None where nothing was.

    Raises RegistryFormatError when the file is damaged, of another project, or written by a newer version;
    RegistryUnavailableError when it cannot be read.
    """
    try:
        text = path.read_bytes()
        seen_us = path.stat().st_mtime_ns // 1000
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _translated(path, error) from None
    try:
        document = json.loads(text)
        version = document["format"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise _damaged(path, "it is no snapshot") from None
    if version != FORMAT_VERSION:
        raise RegistryFormatError(
            f"The snapshot {path} has the format {version!r}; this version reads {FORMAT_VERSION}.",
            hint=f"{UPGRADE_HINT} Or: {DELETE_HINT}",
            path=str(path),
            format=version,
        )
    content = document.get("snapshot")
    if not _matches(content, document.get("checksum")):
        raise _damaged(path, "its checksum does not match")
    try:
        if content["project"] != project:
            raise RegistryFormatError(
                f"The snapshot {path} is of project {content['project']!r}, not {project!r}.",
                hint=f"Check `project:` in the settings, or: {DELETE_HINT}",
                path=str(path),
            )
        chain = Chain(tuple(content.get("chain", ())))  # earlier versions kept none
        revision = Revision(project, content["revision"], tuple(map(_record, content["records"])), chain)
        tokens = tuple(Token.from_document(token) for token in content["tokens"])
    except (KeyError, TypeError):
        raise _damaged(path, "it lacks fields") from None
    return SavedSnapshot(revision, tokens, seen_us)


def _set_seen(path: Path, seen_us: int) -> None:
    # The file's own time: an instant inside it would need a new file at every confirmation.
    os.utime(path, ns=(seen_us * 1000, seen_us * 1000))


def _record(document: Mapping[str, Any]) -> Record:
    fields = tuple(RecordField(**{**field, "inputs": tuple(field["inputs"])}) for field in document["fields"])
    return Record(**{**document, "fields": fields, "depends_on": tuple(document["depends_on"])})


def _matches(content: Any, checksum: Any) -> bool:
    try:
        return bool(checksum == _checksum(content))
    except ValueError:  # JSON of another program may hold what ours never does, such as NaN
        return False


def _checksum(content: Any) -> str:
    return blake2b(canonical_json(content).encode(), digest_size=32).hexdigest()


def _damaged(path: Path, why: str) -> RegistryFormatError:
    return RegistryFormatError(f"The snapshot {path} is damaged: {why}.", hint=DELETE_HINT, path=str(path))


def _translated(path: Path, error: OSError) -> DiskFullError | RegistryUnavailableError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"No space is left for {path}.", hint="Free some space.", path=str(path))
    return RegistryUnavailableError(
        f"The snapshot {path} cannot be used: {error.strerror}.",
        hint="Check that you may read and write the folder.",
        path=str(path),
    )
