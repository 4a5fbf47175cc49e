"""Qwen-VL and Qwen-VL-Chat (2023)."""
