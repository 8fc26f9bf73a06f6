"""Tests of `streams.evaluation.staleness`."""
