"""What the ledger of a registry says: runs, watermarks, commits, leases, saved training sets."""
