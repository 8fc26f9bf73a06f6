"""Tests of `index.state`."""
