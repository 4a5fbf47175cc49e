"""What one call on a GPU brings back: `benchmarks/card.sh`, phase by phase."""
