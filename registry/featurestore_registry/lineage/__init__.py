"""Where features come from and who uses them, from the records and the ledger of one project."""
