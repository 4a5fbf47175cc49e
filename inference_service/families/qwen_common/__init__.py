"""What Qwen2-VL and its successors have in common."""
