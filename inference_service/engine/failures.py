"""Errors of the engine that end its process."""

from __future__ import annotations


class DeviceLostError(RuntimeError):
    """The device does not work any more in this process; another one may work without graphs."""
