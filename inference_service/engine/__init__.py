"""The engine process: scheduler, caches, forward pass and sampler."""
