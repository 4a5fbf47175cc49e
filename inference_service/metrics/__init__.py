"""The metrics of the service: all families, what is measured about one request, and their exposition."""
