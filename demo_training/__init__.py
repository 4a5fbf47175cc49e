"""The demo model's world: draws its images, asks about them, trains the model and examines it.

A development tool beside the service, not part of the wheel: nothing that serves imports it.
"""
