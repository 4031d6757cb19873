"""Optuna studies over strategies. Imports benchmark and strategies; nothing imports it but the command line."""
