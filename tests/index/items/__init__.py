"""Tests of `index.items`."""
