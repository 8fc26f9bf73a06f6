"""Benchmarks, run by hand: `python -m tests.bench.<name>`; the last line of output is one JSON object."""
