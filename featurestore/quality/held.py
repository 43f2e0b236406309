"""What a view's table held at earlier instants: its files now, and those of versions before rows were withdrawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from featurestore.engine.interface import ViewJoin
from featurestore.errors import TableVersionError
from featurestore.offline.interface import DataFile, OfflineReader
from featurestore.quality.past import Past, Withdrawn
from featurestore.training.joins import PinnedRead

MOST_TRIED = 100
"""At most so many versions are tried to find one that still has rows of before a withdrawal."""


class Held:
    """The files of one view, as far back as the oldest instant that is asked about."""

    def __init__(self, offline: OfflineReader, pinned: PinnedRead, past: Past, oldest_us: int) -> None:
        self.current: tuple[DataFile, ...] = () if pinned.version is None else pinned.version.files
        self.withdrawn: list[tuple[Withdrawn, tuple[DataFile, ...]]] = []
        """Withdrawals that were online only after the oldest instant, oldest first, and the files of before that are
        no more among those of a later one."""
        self.lost: list[Withdrawn] = []
        """Those of which the version before is gone: what they withdrew may not be known."""
        known = {file.path for file in self.current}
        for withdrawal in reversed(past.withdrawals):
            if withdrawal.offline_us <= oldest_us:
                break
            before = max((each.version for each in past.withdrawals if each.version < withdrawal.version), default=0)
            found = _version_before(offline, pinned, withdrawal, before)
            files = () if found is None else found[1]
            if found is None or found[0] != withdrawal.version - 1:
                self.lost.insert(0, withdrawal)
            self.withdrawn.insert(0, (withdrawal, tuple(file for file in files if file.path not in known)))
            known.update(file.path for file in files)

    @property
    def files(self) -> Iterator[tuple[Withdrawn | None, DataFile]]:
        """Every file once, with the withdrawal that took rows of it; current ones first, then the last that went."""
        yield from ((None, file) for file in self.current)
        for withdrawal, files in reversed(self.withdrawn):
            yield from ((withdrawal, file) for file in files)

    def spans(self, view: ViewJoin) -> list[tuple[int | None, int | None, ViewJoin]]:
        """Return instants from and until which a join reads other files: all that were there in between."""
        found: list[tuple[int | None, int | None, ViewJoin]] = []
        begin: int | None = None
        for place, (withdrawal, _) in enumerate(self.withdrawn):
            found.append((begin, withdrawal.offline_us, self._with(view, self.withdrawn[place:])))
            begin = withdrawal.offline_us
        return [*found, (begin, None, view)]

    def _with(self, view: ViewJoin, more: Sequence[tuple[Withdrawn, tuple[DataFile, ...]]]) -> ViewJoin:
        paths = dict.fromkeys(file.path for _, files in more for file in files)
        return replace(view, files=(*view.files, *paths), is_begun=True)


def _version_before(
    offline: OfflineReader, pinned: PinnedRead, withdrawal: Withdrawn, before: int
) -> tuple[int, tuple[DataFile, ...]] | None:
    """Return the newest version from ``before`` up to a withdrawal that still exists, and its files."""
    table = pinned.read.registered.table
    for number in range(withdrawal.version - 1, max(before, withdrawal.version - MOST_TRIED) - 1, -1):
        try:
            return number, offline.version(table, number).files
        except TableVersionError:
            continue
    return None
