"""Tests of `streams.attribution`."""
