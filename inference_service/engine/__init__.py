"""The engine: its process and loop, the core with scheduler and caches, loading and running the model, sampling."""
