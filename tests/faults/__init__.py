"""The kill harness: real workers on the embedded broker and Redis, broken on purpose, held against the oracle."""
