"""The chat-level interface between the APIs and the backends that generate answers."""
