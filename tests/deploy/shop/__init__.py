"""Tests of `deploy.shop`."""
