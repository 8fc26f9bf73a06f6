"""Tests of `deploy.texts`."""
