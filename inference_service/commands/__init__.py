"""The commands of `qwenvl`, one module each; torch-free."""
