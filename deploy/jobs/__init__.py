"""Runs what commands ask for once. Takes data folders, models and settings, and gives results, models or folders."""
