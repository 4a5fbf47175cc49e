"""The operations a model is made of, each a torch reference in its own module (engine process only)."""
