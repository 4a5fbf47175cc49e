"""The gRPC API: one servicer per service, between the proto and the backend."""
