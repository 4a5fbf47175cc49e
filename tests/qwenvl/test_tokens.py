"""Token ids and rendered prompts with both clients, against the service and the fake one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from qwenvl import Error
from qwenvl.testing import FakeServer
from tests.grpc_api.conftest import Service
from tests.qwenvl.both import CLIENTS, EitherClient, call
from tests.support.images import draw


PNG = draw("red", "circle").png


@pytest.fixture(params=CLIENTS)
async def client(request: Any, service: Service) -> AsyncIterator[EitherClient]:
    opened = request.param(service.target())
    yield opened
    await call(opened.close)


async def test_texts_become_tokens_and_back(client: EitherClient) -> None:
    text = "\u00e9 <|im_end|>"
    found = await call(client.tokenize, text, strings=True)
    assert list(found.token_strings) == ["\u00c3", "\u00a9", "\u0120", "<|im_end|>"]
    assert found.max_context_tokens == 2048
    plain = await call(client.tokenize, text, parse_special=False)
    assert len(plain.token_ids) == 3 + len("<|im_end|>")
    assert not plain.token_strings
    for ids in (found.token_ids, plain.token_ids):
        assert await call(client.detokenize, ids) == text
    skipped = await call(client.detokenize, list(found.token_ids), skip_special_tokens=True)
    assert skipped == "\u00e9 "


async def test_a_broken_sequence_is_replaced_only_where_it_is_broken(client: EitherClient) -> None:
    ids = (await call(client.tokenize, "a\u732bb")).token_ids
    assert len(ids) == 5
    assert await call(client.detokenize, [*ids[:2], ids[4]]) == "a\ufffdb"


async def test_a_rendered_prompt_is_that_of_the_answer(
    client: EitherClient, service: Service
) -> None:
    options: Any = {"images": [PNG], "system": "Be kind.", "max_tokens": 7, "seed": 3}
    rendered = await call(client.render, "what?", **options)
    answer = await call(client.chat, "what?", **options)
    sent = service.engine.requests[-1]
    started = rendered.started
    assert tuple(started.prompt_token_ids) == sent.prompt_token_ids
    assert started.prompt_usage.prompt_tokens == answer.usage.prompt_tokens
    assert started.effective_settings == answer.response.started.effective_settings
    assert started.images == answer.response.started.images
    [placeholder] = rendered.placeholders
    [image] = sent.images
    assert (placeholder.offset, placeholder.length) == (image.start, image.num_tokens)
    assert placeholder.key == image.key
    assert "Be kind." in started.prompt_text
    assert not rendered.token_strings
    assert len(service.engine.requests) == 1, "rendering is no generation"


async def test_a_rendered_text_is_that_of_its_completion(
    client: EitherClient, service: Service
) -> None:
    options: Any = {"max_tokens": 7, "seed": 3, "bad_words": ["zz"]}
    rendered = await call(client.render_complete, "once", **options)
    answer = await call(client.complete, "once", **options)
    assert tuple(rendered.started.prompt_token_ids) == service.engine.requests[-1].prompt_token_ids
    assert rendered.started.prompt_text == "once"
    assert rendered.started.effective_settings == answer.response.started.effective_settings
    assert len(service.engine.requests) == 1


@pytest.mark.parametrize("kind", CLIENTS)
async def test_wrong_arguments_are_named(kind: Any) -> None:
    with FakeServer() as server:
        client = kind(server.target)
        for wrong in ("12", b"12"):
            with pytest.raises(TypeError, match="token_ids"):
                await call(client.detokenize, wrong)
        with pytest.raises(TypeError, match="text"):
            await call(client.tokenize, 5)
        with pytest.raises(ValueError, match="token_ids"):
            await call(client.detokenize, [2**40])
        await call(client.close)


@pytest.mark.parametrize("kind", CLIENTS)
async def test_the_fake_service_has_a_token_for_each_character(kind: Any) -> None:
    with FakeServer(models="fake") as server:
        client = kind(server.target)
        found = await call(client.tokenize, "h\u732b", strings=True)
        assert list(found.token_ids) == [104, 0x732B]
        assert list(found.token_strings) == ["h", "\u732b"]
        assert await call(client.detokenize, found.token_ids) == "h\u732b"
        rendered = await call(client.render, "hi", system="you")
        assert rendered.started.prompt_text == "you\nhi"
        for prompt in ("hi", [104, 105]):
            rendered = await call(client.render_complete, prompt)
            assert rendered.started.prompt_text == "hi"
            assert list(rendered.started.prompt_token_ids) == [104, 105]
        for wrong in ([0xD800], [-1], [0x110000]):
            with pytest.raises(Error, match="vocabulary"):
                await call(client.detokenize, wrong)
        with pytest.raises(Error, match="not served"):
            await call(client.tokenize, "x", model="other")
        await call(client.close)
