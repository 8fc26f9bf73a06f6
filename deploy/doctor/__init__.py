"""Looks at an installation and says what is wrong and what to do; takes settings, gives findings."""
