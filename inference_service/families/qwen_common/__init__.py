"""Shared parts of Qwen2-VL and its successors."""
