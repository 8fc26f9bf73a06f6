"""Measures lists offline and in replays. Takes a data folder or a live state, a model and baselines, and gives metrics
with intervals, slices and paired tests."""
