"""Tests of `deploy.stack`."""
