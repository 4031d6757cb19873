"""How fast this machine trains, beside loops of others: `make perf` and `make perf-peers`."""
