"""The parts of `qwenvl.testing.FakeServer`."""
