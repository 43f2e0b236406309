"""What every offline store must say about the owner of its tables. Use it together with `OfflineStoreConformance`."""

from __future__ import annotations

import threading

from featurestore.offline.interface import OfflineStore, TableId, TableSchema, TableVersion
from featurestore.testing.offline_store import SCHEMA, TABLE, row, write_rows
from featurestore.types import Float64, String


class TableOriginsConformance:
    """Who owns tables, and which commits made them: see `OfflineReader` and `OfflineStore`."""

    def test_a_commit_is_told_from_every_other_of_its_number(self, offline: OfflineStore) -> None:
        other = TableId("conformance", "profile", 2)
        assert offline.find_commit(TABLE) is None
        assert offline.find_commit(TABLE, 0) is None
        seen = []
        for table in (TABLE, other):
            version: TableVersion | None = None
            for number in range(3):
                path = write_rows(offline, [row(number)], first_sequence=number, table=table)
                base = None if version is None else version.number
                version = offline.commit(table, SCHEMA, base=base, add=[path], facts={"by": [table.generation, number]})
                commit = offline.find_commit(table)
                assert commit == offline.find_commit(table, number)
                assert commit is not None
                assert (commit.number, commit.facts) == (number, {"by": [table.generation, number]})
                assert commit.identity == version.identity == offline.version(table, number).identity
                seen.append(commit.identity)
        assert len(set(seen)) == 6
        assert offline.find_commit(TABLE, 3) is None

    def test_new_columns_keep_the_facts_of_their_commit_but_not_what_it_makes_true(self, offline: OfflineStore) -> None:
        facts = {"by": "us", "watermark": {"until": 1}}
        first = offline.commit(TABLE, SCHEMA, base=None, add=[write_rows(offline, [row(1)])], facts=facts)
        grown = TableSchema(SCHEMA.join_keys, (*SCHEMA.stored, ("gate", String)))
        path = write_rows(offline, [row(2)], first_sequence=1, schema=grown, extra={"gate": ["A1"]})
        last = offline.commit(TABLE, grown, base=first.number, add=[path], facts=facts)
        found = [offline.find_commit(TABLE, number) for number in range(last.number + 1)]
        assert [commit.facts for commit in found if commit] == [facts, {"by": "us"}, facts]

    def test_a_commit_says_when_and_which_rows_came_and_left(self, offline: OfflineStore) -> None:
        five, two = ([row(number) for number in range(count)] for count in (5, 2))
        first = offline.commit(TABLE, SCHEMA, base=None, add=[write_rows(offline, five, first_sequence=3)])
        kept = write_rows(offline, two, first_sequence=3)  # the other three are withdrawn
        new = write_rows(offline, two, first_sequence=20)
        second = offline.commit(TABLE, SCHEMA, base=first.number, add=[kept, new], remove=first.files)
        whole = write_rows(offline, [*two, *two], first_sequence=18)
        merged = offline.merge(TABLE, base=second.number, add=[whole], remove=second.files)
        wide = TableSchema(SCHEMA.join_keys, tuple((n, Float64 if n == "delay" else t) for n, t in SCHEMA.stored))
        offline.commit(TABLE, wide, base=merged.number, add=[])  # writes all files again
        found = [offline.find_commit(TABLE, number) for number in range(4)]
        told = [(c.rows, c.withdrawn, c.first_sequence, c.last_sequence, c.merges) for c in found if c is not None]
        assert told[:2] == [(5, 0, 3, 7, False), (2, 3, 20, 21, False)]
        assert told[2:] == [(0, 0, None, None, True), (0, 0, None, None, False)]
        assert None not in [c.at_us for c in found if c is not None]

    def test_a_projects_tables_belong_to_who_committed_first(self, offline: OfflineStore) -> None:
        assert offline.owner("conformance") is None
        assert offline.bind("conformance", "a") == "a"
        assert offline.bind("conformance", "b") == "b"  # it holds no table: there is nothing to keep
        offline.commit(TABLE, SCHEMA, base=None, add=[write_rows(offline, [row(1)])])
        assert offline.bind("conformance", "a") == "b"
        assert (offline.owner("conformance"), offline.owner("neighbour")) == ("b", None)
        assert offline.bind("conformance", "a", replace=True) == "a"
        offline.clean(TABLE, keep=None)
        assert offline.bind("conformance", "c") == "c"

    def test_of_many_that_bind_a_project_one_wins(self, offline: OfflineStore) -> None:
        offline.commit(TABLE, SCHEMA, base=None, add=[write_rows(offline, [row(1)])])
        answers: list[str] = []
        threads = [
            threading.Thread(target=lambda number=number: answers.append(offline.bind("conformance", str(number))))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 8
        assert set(answers) == {offline.owner("conformance")}

    def test_a_generation_is_used_once(self, offline: OfflineStore) -> None:
        second = TableId("conformance", "profile", 2)
        assert offline.last_generation("conformance", "profile") == 0
        assert offline.claim(TABLE)
        assert not offline.claim(TABLE)
        offline.commit(TABLE, SCHEMA, base=None, add=[write_rows(offline, [row(1)])])
        offline.commit(second, SCHEMA, base=None, add=[write_rows(offline, [row(1)], table=second)])
        assert not offline.claim(second)
        assert offline.tables("conformance") == [TABLE, second]
        for table in (TABLE, second):
            offline.clean(table, keep=None)
            assert not offline.claim(table)
        assert offline.last_generation("conformance", "profile") == 2
        assert offline.tables("conformance") == []
        assert offline.claim(TableId("conformance", "profile", 3))
        assert offline.tables("conformance") == []
