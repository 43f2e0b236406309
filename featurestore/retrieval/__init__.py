"""Training sets and online reads."""
