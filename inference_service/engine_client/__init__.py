"""The front's side of the engine: its process, the requests in flight and the pixel budget."""
