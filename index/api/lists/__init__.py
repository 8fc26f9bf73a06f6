"""Lists for one user or beside one item, from the request in HTTP to the answer."""
