"""Tests, flat by package and module; integration, faults and benches below."""
