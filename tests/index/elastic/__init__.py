"""Tests of `index.elastic`."""
