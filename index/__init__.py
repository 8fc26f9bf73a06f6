"""From vectors to answers: live state, items, search, query and the HTTP API."""
