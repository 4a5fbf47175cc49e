"""From generated tokens to the events of an answer."""
