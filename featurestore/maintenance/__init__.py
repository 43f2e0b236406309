"""Keeping a store in shape."""
