"""OpenAI-compatible door: translates JSON into the gRPC contract and back, nothing else."""
