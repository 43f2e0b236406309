"""The central registry: records, revisions and the ledger, with no knowledge of what they describe."""
