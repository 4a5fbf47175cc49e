"""`/v1/decisions`: questions about one input, decided by the model's own probabilities."""
