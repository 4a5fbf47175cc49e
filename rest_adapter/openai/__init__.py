"""The dialect of OpenAI: chat completions, completions and models."""
