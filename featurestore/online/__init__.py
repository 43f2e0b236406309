"""The online store: the newest record of each entity."""
