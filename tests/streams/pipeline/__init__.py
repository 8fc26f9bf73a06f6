"""Tests of `streams.pipeline`."""
