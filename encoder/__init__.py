"""The STARS encoder: a user's window of events becomes two vectors, exactly and one event at a time."""
