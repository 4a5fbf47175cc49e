"""The OpenAI-compatible REST API: translates JSON to gRPC calls and back."""
