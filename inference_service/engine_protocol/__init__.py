"""The messages between the front and the engine process, and their wire format."""
