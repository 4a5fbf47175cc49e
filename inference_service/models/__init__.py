"""The models that the engine runs: decoder, vision-language model, image patches, checkpoint files, placement."""
