"""What the moment and the place add to a query: features of time, weather, events and promotions, and their offsets."""
