"""Keeps the transformers library from asking a hub or reporting to one, for whole programs."""

from __future__ import annotations

import os


def stay_offline() -> None:
    """To be called by a program before the library is imported, which reads the environment then."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
