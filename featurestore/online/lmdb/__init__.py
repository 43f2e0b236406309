"""The embedded online store, on LMDB."""
