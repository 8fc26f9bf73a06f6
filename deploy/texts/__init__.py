"""The choice of text model for a deployment, and the text vectors of a folder's items.

Takes settings and an artefact. Gives vectors and tags from MiniLM or from endpoints, each text embedded once.
"""
