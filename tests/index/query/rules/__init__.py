"""Tests of `index.query.rules`."""
