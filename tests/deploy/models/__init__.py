"""Tests of `deploy.models`."""
