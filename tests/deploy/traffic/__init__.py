"""Tests of `deploy.traffic`."""
