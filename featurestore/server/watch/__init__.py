"""What a server says about itself while it runs: metrics, logs, warnings."""
