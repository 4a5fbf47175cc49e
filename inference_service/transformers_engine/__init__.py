"""The process that computes models with the transformers library: the reference path, slow but for every model."""
