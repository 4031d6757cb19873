"""Tracked results -> tables and figures. Imports neither torch nor the harness."""
