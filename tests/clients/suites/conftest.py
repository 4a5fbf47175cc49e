"""What the suites know of the product: where it listens, and a picture of a red circle.

A suite runs in the environment of its client, so that nothing of this project is imported here.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest


MODEL = "qwen-vl"


@pytest.fixture(scope="session")
def url() -> str:
    """The REST API, without a path."""
    return os.environ["QWENVL_URL"]


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A red circle, as PNG."""
    return Path(os.environ["QWENVL_IMAGE"]).read_bytes()


@pytest.fixture(scope="session")
def base64_picture(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


@pytest.fixture(scope="session")
def data_uri(base64_picture: str) -> str:
    return f"data:image/png;base64,{base64_picture}"
