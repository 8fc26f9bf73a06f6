"""Tests of `deploy.console`."""
