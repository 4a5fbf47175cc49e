"""The engine: scheduler, caches, forward pass and sampler in a process of their own, and the front's client to it."""
