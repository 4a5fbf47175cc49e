"""Generated stubs of the API contract, written by `make stubs`."""
