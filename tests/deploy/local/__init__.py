"""Tests of `deploy.local`."""
