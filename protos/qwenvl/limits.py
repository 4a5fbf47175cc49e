"""Limits that both ends of a call must agree on."""

from __future__ import annotations

from typing import Final


MAX_MESSAGE_BYTES: Final = 32 * 2**20
"""Largest message in either direction; `GetServerInfo` reports it."""
