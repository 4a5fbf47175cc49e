"""gRPC inference service for the Qwen-VL family: an asyncio front and an engine process."""
