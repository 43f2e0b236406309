"""What a server says of itself while it runs: metrics, logs, warnings."""
