"""What was clicked and bought of the lists that were shown, as counts by cell, and what they say."""
