"""The front's side of the engine: its process, the requests in flight, the pixel budget and the quarantine."""
