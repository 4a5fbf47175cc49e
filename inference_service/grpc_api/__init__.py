"""The gRPC door: one servicer per service, and the way of a request through the front."""
