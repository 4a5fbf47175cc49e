"""OpenAI's dialect: chat completions, completions, responses, decisions, tokens and models."""
