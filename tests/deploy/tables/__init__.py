"""Tests of `deploy.tables`."""
