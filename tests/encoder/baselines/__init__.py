"""Tests of `encoder.baselines`."""
