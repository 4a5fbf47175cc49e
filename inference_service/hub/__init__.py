"""From a model's name to a verified snapshot on this machine."""
