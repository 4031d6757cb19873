"""The harness: data, scenarios, stacked training, results and tracking."""
