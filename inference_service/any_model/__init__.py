"""What the front may know, without importing it, about models that the transformers library serves."""
