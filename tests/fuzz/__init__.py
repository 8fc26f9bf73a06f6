"""Random and mutated records on all topics, through the whole engine, with users that nobody touches beside them."""
