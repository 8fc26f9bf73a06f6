"""Tests of `encoder.training`."""
