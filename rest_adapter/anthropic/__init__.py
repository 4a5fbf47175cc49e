"""Anthropic's dialect: messages, the count of their tokens, their prompts, and models."""
