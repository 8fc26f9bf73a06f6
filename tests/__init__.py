"""Tests, in folders that mirror the packages; fault injection, integration, benchmarks and support are beside them."""
