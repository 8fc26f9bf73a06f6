"""Tests of `deploy.runtime`."""
