"""Shapes of the API's answers and request bodies, the source of the OpenAPI document.

Answers are rendered directly, not through these models (validation costs more than the ranking); the tests hold every
answer against its model. Posted records are checked by the rules of the topics.
"""
