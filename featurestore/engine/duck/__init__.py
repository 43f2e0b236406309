"""The engine on DuckDB, in one process."""
