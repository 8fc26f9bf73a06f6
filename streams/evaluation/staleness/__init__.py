"""Goes through a held-out timeline once, with parts of the live state late or none. Takes a data folder and a model,
and gives an answer per question and delay."""
