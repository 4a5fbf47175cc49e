"""Model ids of ModelScope and Hugging Face, resolved to verified local snapshots."""
