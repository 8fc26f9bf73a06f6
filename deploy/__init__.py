"""The composition root with settings, commands, processes and local servers.

The only package that reads the environment or starts processes. It wires the parts of the other packages together.
"""
