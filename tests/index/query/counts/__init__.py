"""Tests of `index.query.counts`."""
