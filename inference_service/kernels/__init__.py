"""The operations and layers that models are built of: each kernel beside its torch reference."""
