"""Text on its way in and out: templates, tokens, characters. Torch-free."""
