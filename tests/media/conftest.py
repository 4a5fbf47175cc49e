"""The image policy of Qwen3-VL, a watch over dialled addresses, and decoders whose workers end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc
import pytest

from inference_service.model_spec import ImagePolicy
from tests.media.decoding import Decoding


@pytest.fixture(scope="session")
def policy() -> ImagePolicy:
    return ImagePolicy(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=65536,
        max_pixels=16777216,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every address that is dialled; anything but loopback fails at once without traffic."""
    seen: list[tuple[str, int]] = []
    real = anyio.connect_tcp

    async def watched(
        remote_host: str, remote_port: int, *args: Any, **kwargs: Any
    ) -> anyio.abc.SocketStream:
        seen.append((str(remote_host), remote_port))
        if remote_host not in {"127.0.0.1", "::1"}:
            raise OSError("no traffic in tests")
        stream: anyio.abc.SocketStream = await real(remote_host, remote_port, *args, **kwargs)
        return stream

    monkeypatch.setattr(anyio, "connect_tcp", watched)
    return seen


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Decoding]]:
    made: list[Decoding] = []

    def decoding(*args: Any, **options: Any) -> Decoding:
        made.append(Decoding(*args, **options))
        return made[-1]

    yield decoding
    for one in made:
        one.decoder.close()
