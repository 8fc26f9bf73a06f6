"""Tests of `encoder.text`."""
