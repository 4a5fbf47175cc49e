"""Fetches, decodes and resizes images and videos. Torch-free."""
