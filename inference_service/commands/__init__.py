"""The commands of `qwenvl`, one module each; torch-free."""

from __future__ import annotations


INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as in shells."""
