"""Tests of `encoder.inference`."""
