"""Tests of `deploy.roles`."""
