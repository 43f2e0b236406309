"""The feature server."""
