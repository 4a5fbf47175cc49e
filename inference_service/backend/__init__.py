"""The chat-level seam between the APIs and what generates answers."""
