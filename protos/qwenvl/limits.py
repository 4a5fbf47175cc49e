"""Limits that client and server share."""

from __future__ import annotations

from typing import Final


MAX_MESSAGE_BYTES: Final = 32 * 2**20
"""Maximum size of a message in either direction; reported by `GetServerInfo`."""

MAX_TOOLS: Final = 256
"""Maximum number of tools of a request."""
