"""Triton kernels with the arguments and results of the torch references one folder up."""
