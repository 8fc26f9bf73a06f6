"""Tests that talk to running processes from outside."""
