"""Tests of `streams.evaluation.sessions`."""
