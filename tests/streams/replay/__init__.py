"""Tests of `streams.replay`."""
