"""Wire names and stored bytes are those of commit 9afcd80, wherever the code that makes them has moved to."""
