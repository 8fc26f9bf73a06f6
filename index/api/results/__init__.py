"""What was clicked and bought of lists, over HTTP."""
