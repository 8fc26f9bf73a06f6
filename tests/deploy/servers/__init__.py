"""Tests of `deploy.servers`."""
