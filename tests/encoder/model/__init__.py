"""Tests of `encoder.model`."""
