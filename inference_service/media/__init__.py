"""Images on their way in: fetched, decoded, resized. Torch-free."""
