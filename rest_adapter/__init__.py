"""OpenAI-compatible REST API: translates JSON into the gRPC contract and back, nothing else."""
