"""What every offline store must do as its tables grow: merges change no rows, old versions stay readable until cleaned.

Subclass `TableGrowthConformance` and give it an ``offline`` fixture, as for `OfflineStoreConformance`. The more often
the store puts its log in order in the tests, the more they try.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest

from featurestore.errors import ConcurrentCommitError, DamagedFileError, OfflineStoreError, TableVersionError
from featurestore.offline.interface import DataFile, OfflineStore, TableSchema, TableVersion
from featurestore.testing.offline_store import SCHEMA, TABLE, append, numbers, read_file, read_rows, row, write_rows
from featurestore.types import Float64
from featurestore.types.columns import SEQUENCE


def merge(offline: OfflineStore, version: TableVersion, files: Sequence[DataFile] | None = None) -> TableVersion:
    """Merge files of a version, by default all, after that version."""
    files = version.files if files is None else files
    tables = [read_file(offline, file) for file in files]
    path = offline.write(TABLE, pa.concat_tables(tables, promote_options="default"))
    try:
        return offline.merge(TABLE, base=version.number, add=[path], remove=files)
    finally:
        path.unlink(missing_ok=True)


def append_several(offline: OfflineStore, count: int, version: TableVersion | None = None) -> TableVersion:
    """Commit so many rows, each by itself; their ``number`` is their ``fs_seq``."""
    for _ in range(count):
        version = append(offline, [row(0 if version is None else version.next_sequence)], version)
    assert version is not None
    return version


def new_rows(offline: OfflineStore, after: int | None, until: TableVersion) -> list[int]:
    """Return the ``fs_seq`` of the rows that `changes` calls new."""
    changes = offline.changes(TABLE, after, until.number)
    found = [at for file in changes.added for at in read_file(offline, file)[SEQUENCE].to_pylist()]
    return sorted(at for at in found if at >= changes.first_sequence)


class TableGrowthConformance:
    """The suite."""

    def test_a_merge_changes_the_layout_alone(self, offline: OfflineStore) -> None:
        before = append_several(offline, 5)
        merged = merge(offline, before, before.files[:3])
        assert merged == offline.current(TABLE)
        assert (merged.number, len(merged.files)) == (before.number + 1, 3)
        assert read_rows(offline, merged) == read_rows(offline, before)
        assert (merged.next_sequence, merged.rows_kept_since) == (before.next_sequence, before.rows_kept_since)
        offline.verify(merged.files, again=True)
        assert numbers(offline, offline.version(TABLE, before.number)) == [0, 1, 2, 3, 4]
        assert numbers(offline, append_several(offline, 1, merged)) == [0, 1, 2, 3, 4, 5]

    def test_a_merge_carries_on_what_the_commit_before_said(self, offline: OfflineStore) -> None:
        first = append_several(offline, 1)
        facts = {"watermark": {"intervals": [[1, 2]]}}
        path = write_rows(offline, [row(1)], first_sequence=1)
        second = offline.commit(TABLE, SCHEMA, base=first.number, add=[path], facts=facts)
        merged = merge(offline, second)
        found = offline.find_commit(TABLE, merged.number)
        assert found is not None
        assert found.facts == facts
        assert found.identity == merged.identity != second.identity

    def test_columns_that_came_later_stay_with_a_merge(self, offline: OfflineStore) -> None:
        more = TableSchema(SCHEMA.join_keys, (*SCHEMA.stored, ("price", Float64)))
        first = append_several(offline, 1)
        second = append(offline, [row(1)], first, schema=more, extra={"price": [2.5]})
        merged = merge(offline, second)
        assert [found["price"] for found in read_rows(offline, merged)] == [None, 2.5]
        third = append(offline, [row(2)], merged, schema=more, extra={"price": [7.5]})
        assert [found["price"] for found in read_rows(offline, third)] == [None, 2.5, 7.5]

    def test_a_merge_that_would_change_rows_is_refused(self, offline: OfflineStore) -> None:
        before = append_several(offline, 3)
        for rows, first in (([row(0), row(1)], 0), ([row(0), row(1), row(2)], 1)):
            path = write_rows(offline, rows, first_sequence=first)
            with pytest.raises(OfflineStoreError, match="would change the rows of table conformance/profile/1"):
                offline.merge(TABLE, base=before.number, add=[path], remove=before.files)
            assert list(offline.staging(TABLE).iterdir()) == [path]
            path.unlink()
        assert offline.current(TABLE) == before

    def test_a_merge_from_an_old_version_is_refused_and_changes_nothing(self, offline: OfflineStore) -> None:
        old = append_several(offline, 2)
        newest = append_several(offline, 1, old)
        with pytest.raises(ConcurrentCommitError, match="conformance/profile/1"):
            merge(offline, old)
        assert offline.current(TABLE) == newest
        with pytest.raises(TableVersionError, match="no version 99"):
            offline.merge(TABLE, base=99, add=[write_rows(offline, [row(1)])], remove=())

    def test_changes_tell_new_rows_through_merges(self, offline: OfflineStore) -> None:
        first = append_several(offline, 3)
        only_merged = merge(offline, first)
        assert offline.changes(TABLE, first.number, only_merged.number).added == ()
        second = append_several(offline, 2, only_merged)
        newest = append_several(offline, 1, merge(offline, second))
        for after, wanted in ((first, [3, 4, 5]), (only_merged, [3, 4, 5]), (second, [5]), (newest, [])):
            assert new_rows(offline, after.number, newest) == wanted
            assert offline.changes(TABLE, after.number, newest.number).removed == ()
        assert new_rows(offline, None, newest) == [0, 1, 2, 3, 4, 5]
        # The files of then are not needed for it.
        offline.clean(TABLE, keep=[], known=[first.number])
        with pytest.raises(TableVersionError):
            offline.version(TABLE, first.number)
        assert new_rows(offline, first.number, newest) == [3, 4, 5]

    def test_rows_that_left_are_seen_through_merges(self, offline: OfflineStore) -> None:
        first = append_several(offline, 4)
        gone = first.files[0]
        second = offline.commit(TABLE, SCHEMA, base=first.number, add=[], remove=[gone])
        assert second.rows_kept_since == second.number
        newest = append_several(offline, 1, merge(offline, second))
        assert newest.rows_kept_since == second.number
        assert gone in offline.changes(TABLE, first.number, newest.number).removed
        assert new_rows(offline, second.number, newest) == [4]
        # What stays of a file that held withdrawn rows comes back under the old numbers.
        path = write_rows(offline, [row(7)], first_sequence=2)
        rewritten = offline.commit(TABLE, SCHEMA, base=newest.number, add=[path], remove=newest.files)
        assert rewritten.rows_kept_since == rewritten.number
        # So would a file that some other way holds rows of earlier numbers.
        odd = offline.commit(TABLE, SCHEMA, base=rewritten.number, add=[write_rows(offline, [row(8)])])
        assert odd.rows_kept_since == odd.number

    @pytest.mark.parametrize("seed", range(4))
    def test_any_order_of_commits_and_merges(self, offline: OfflineStore, seed: int) -> None:
        dice = random.Random(seed)
        version = append_several(offline, 1)
        held = {version.number: set(range(version.next_sequence))}
        withdrawn_at = 0
        for _ in range(25):
            kind = dice.choice(
                ["append", "append", "merge", "withdraw"] if dice.random() < 0.5 else ["append", "merge"]
            )
            some = dice.sample(version.files, min(len(version.files), dice.randrange(1, 4)))
            rows = set(held[version.number])
            if kind == "append":
                version = append_several(offline, 1, version)
                rows.add(version.next_sequence - 1)
            elif kind == "merge" and some:
                version = merge(offline, version, some)
            elif some:
                rows -= {at for file in some for at in read_file(offline, file)[SEQUENCE].to_pylist()}
                version = offline.commit(TABLE, SCHEMA, base=version.number, add=[], remove=some)
                withdrawn_at = version.number
            held[version.number] = rows
        for number, rows in held.items():
            found = offline.version(TABLE, number)
            assert {at[SEQUENCE] for at in read_rows(offline, found)} == rows
            if number >= withdrawn_at:
                assert set(new_rows(offline, number, version)) == held[version.number] - rows
                assert offline.changes(TABLE, number, version.number).removed == ()
            elif not rows <= held[version.number]:
                assert offline.changes(TABLE, number, version.number).removed != ()

    def test_every_version_stays_readable_until_it_is_cleaned(self, offline: OfflineStore) -> None:
        version, identities, written = append_several(offline, 1), list[str](), set[DataFile]()
        for _ in range(49):
            identities.append(version.identity)
            written |= {*version.files}
            version = append_several(offline, 1, version)
        for number, identity in enumerate(identities):
            found = offline.version(TABLE, number)
            assert (found.identity, numbers(offline, found)) == (identity, list(range(number + 1)))
        merged = merge(offline, version)
        assert offline.clean(TABLE, keep=[3, 20], known=[]) > 0
        for number in (3, 20):
            assert numbers(offline, offline.version(TABLE, number)) == list(range(number + 1))
        with pytest.raises(TableVersionError):
            offline.version(TABLE, 40)
        assert numbers(offline, merged) == list(range(50))
        # Of files that a version no longer pins, cleaning knows also where the entry that added them is gone.
        offline.clean(TABLE, keep=[], known=[])
        for file in written:
            with pytest.raises(DamagedFileError):
                offline.open(file)
        assert numbers(offline, append_several(offline, 2, merged)) == list(range(52))
