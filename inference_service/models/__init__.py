"""The model that the engine runs: decoder, preprocessing, checkpoint files and placement on devices."""
