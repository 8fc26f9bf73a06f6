"""The kill harness: real workers, API processes, Kafka and Redis, broken on purpose, held against the oracle."""
