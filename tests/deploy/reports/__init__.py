"""Tests of `deploy.reports`."""
