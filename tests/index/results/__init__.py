"""Tests of `index.results`."""
