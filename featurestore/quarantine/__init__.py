"""Rows that are set aside: what is kept of them, and what was decided about them."""
