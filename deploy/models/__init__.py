"""The life of a model, from the registry over what workers write to promotion and retirement"""
