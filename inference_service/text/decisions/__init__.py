"""How questions about one input are written into prompts, and which tokens are their answers."""
