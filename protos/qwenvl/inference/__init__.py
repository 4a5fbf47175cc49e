"""Generated stubs of the contract; `make stubs` writes them."""
