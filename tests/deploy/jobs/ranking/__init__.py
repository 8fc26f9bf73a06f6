"""Tests of `deploy.jobs.ranking`."""
