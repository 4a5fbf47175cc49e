"""Trains and evaluates the demo model: draws images, generates questions about them, trains and tests the model.

A development tool that is not part of the wheel and not imported by the service.
"""
