"""Holds the main function of each process, which builds the parts from settings and runs until a signal."""
