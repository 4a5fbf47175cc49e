"""Model ids of ModelScope and Hugging Face, resolved to verified snapshots on this machine."""
