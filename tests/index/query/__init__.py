"""Tests of `index.query`."""
