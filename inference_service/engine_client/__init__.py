"""The front's side of the engine: its processes, the requests in flight, the pixel budget and the quarantine."""
