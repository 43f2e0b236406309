"""Trackers of experiments: what is written into their runs, and read of the models that came from them."""
