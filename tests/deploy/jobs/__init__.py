"""Tests of `deploy.jobs`."""
