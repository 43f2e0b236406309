"""From sources into the offline store, and from there into the online store."""
