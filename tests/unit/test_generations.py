"""What a ledger says about used generations, whatever else stands there."""

from __future__ import annotations

from featurestore_registry.sql import open_registry

from featurestore.ledger.generations import adopt_generation, last_generation, remember_generation, used_generations


def test_entries_that_say_no_generation_count_for_nothing(tmp_path):
    with open_registry(f"sqlite:///{tmp_path / 'r.db'}") as registry:
        ledger = registry.ledger
        remember_generation(ledger, "p", "v", 2)
        adopt_generation(ledger, "p", "v", 1)
        for wrong in ({}, {"generation": "3"}, {"generation": 2**70}, {"generation": -1}, {"generation": True}):
            ledger.append("p", "generation", "v", wrong)
            ledger.append("p", "generation", "w", wrong)
        assert used_generations(ledger, "p") == {"v": {1, 2}, "w": set()}
        assert last_generation(ledger, "p", "w") == 0
        remember_generation(ledger, "p", "w", 1)
        assert last_generation(ledger, "p", "w") == 1
