"""Tests of `encoder`."""
