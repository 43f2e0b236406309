"""The last good definitions on disk, for a server that starts while the registry is down.

The file holds what a server needs from the registry and nothing else: the records of one revision and the hashes of
the tokens. Only its owner may read it; it is replaced atomically and checked against its own checksum.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from featurestore_registry.auth import Token
from featurestore_registry.errors import UPGRADE_HINT
from featurestore_registry.records import Chain, Revision, record_from

from featurestore.errors import NO_SPACE, DiskFullError, RegistryFormatError, RegistryUnavailableError
from featurestore.project.private_file import checksum, matches, replace_file, set_modified

FORMAT_VERSION = 1
FILE_NAME = Path(".featurestore", "snapshot.json")
"""The path of the file in a feature repo."""

DELETE_HINT = "Delete the file and start the server while the registry can be reached."


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """What a server knows from the registry."""

    revision: Revision
    tokens: tuple[Token, ...]
    seen_us: int
    """When the registry last confirmed this state, UTC microseconds."""


def save_snapshot(path: Path, saved: SavedSnapshot) -> None:
    """Replace the file, durably and in one step; readers see the whole old file or the whole new one.

    Raises DiskFullError, or RegistryUnavailableError when the folder cannot be written; the old file then stays.
    """
    content = {
        "project": saved.revision.project,
        "revision": saved.revision.number,
        "chain": list(saved.revision.chain.hashes),
        "records": [asdict(record) for record in saved.revision.records],
        "tokens": [token.to_document() for token in saved.tokens],
    }
    document = {"format": FORMAT_VERSION, "checksum": checksum(content), "snapshot": content}
    try:
        # Kept as the file's modification time: an instant inside would need a new file at every confirmation.
        replace_file(path, document, modified_us=saved.seen_us)
    except OSError as error:
        raise _translated(path, error) from None


def confirm_snapshot(path: Path, seen_us: int) -> None:
    """Note that the file still agrees with the registry. Raises RegistryUnavailableError as `save_snapshot`."""
    try:
        set_modified(path, seen_us)
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
        raise _damaged(path, "it is not a snapshot") from None
    if version != FORMAT_VERSION:
        raise RegistryFormatError(
            f"The snapshot {path} has the format {version!r}; this version reads {FORMAT_VERSION}.",
            hint=f"{UPGRADE_HINT} Or: {DELETE_HINT}",
            path=str(path),
            format=version,
        )
    content = document.get("snapshot")
    if not matches(content, document.get("checksum")):
        raise _damaged(path, "its checksum does not match")
    try:
        if content["project"] != project:
            raise RegistryFormatError(
                f"The snapshot {path} is of project {content['project']!r}, not {project!r}.",
                hint=f"Check `project:` in the settings, or: {DELETE_HINT}",
                path=str(path),
            )
        chain = Chain(tuple(content.get("chain", ())))  # earlier versions saved no chain
        revision = Revision(project, content["revision"], tuple(map(record_from, content["records"])), chain)
        tokens = tuple(Token.from_document(token) for token in content["tokens"])
    except (KeyError, TypeError):
        raise _damaged(path, "it lacks fields") from None
    return SavedSnapshot(revision, tokens, seen_us)


def _damaged(path: Path, why: str) -> RegistryFormatError:
    return RegistryFormatError(f"The snapshot {path} is damaged: {why}.", hint=DELETE_HINT, path=str(path))


def _translated(path: Path, error: OSError) -> DiskFullError | RegistryUnavailableError:
    if error.errno in NO_SPACE:
        return DiskFullError(f"No space is left for {path}.", hint="Free some space.", path=str(path))
    return RegistryUnavailableError(
        f"The snapshot {path} cannot be used: {error.strerror}.",
        hint="Check that you may read and write the folder.",
        path=str(path),
    )
