"""The operations and layers of models; each kernel stands next to its torch reference."""
