"""The model's architecture and its artefact on disk.

Holds the transformer, the item tower, the [USER] prefix and the presets. Training, whole-window encoding and the cached
append share its operations. The artefact is safetensors and JSON, readable with numpy alone.
"""
