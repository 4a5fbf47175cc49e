"""`/tokenize`, `/detokenize` and `/v1/chat/completions/render`, in the form of vLLM."""
