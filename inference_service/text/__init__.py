"""Chat templates, tokenizers, prompts, and the output pipeline. Torch-free."""
