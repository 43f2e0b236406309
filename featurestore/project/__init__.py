"""A feature repo on disk: its settings and its definitions."""
