"""Training and asking of second-stage rankers, from a data folder or the topics."""
