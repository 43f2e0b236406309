"""The catalog: pages over any registry, made on the server, for people who look for features.

It only reads: a `RegistryReader` is all that it gets. `app` answers requests, `routes` says which page has which
address, `pages` make them from what `site` keeps in memory.
"""
