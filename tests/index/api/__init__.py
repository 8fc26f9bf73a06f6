"""Tests of `index.api`."""
