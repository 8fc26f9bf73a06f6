"""Tests of `streams.folder`."""
