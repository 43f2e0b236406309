"""The engine: everything that touches many rows."""
