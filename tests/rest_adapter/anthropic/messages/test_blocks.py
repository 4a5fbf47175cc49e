"""Every type of block in Anthropic's package is served, or refused by name; and every field is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from anthropic.types import (
    ContentBlockParam,
    ImageBlockParam,
    ImageTransformationsParam,
    MessageCountTokensParams,
    OutputConfigParam,
    TextBlockParam,
    ThinkingBlockParam,
    ThinkingConfigEnabledParam,
    ToolChoiceToolParam,
    ToolParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
)
from anthropic.types.beta import BetaContentBlockParam, BetaToolParam
from anthropic.types.beta.beta_tool_result_block_param import Content as BetaContent
from anthropic.types.beta.message_count_tokens_params import (
    MessageCountTokensParams as BetaMessageCountTokensParams,
)
from anthropic.types.beta.message_create_params import (
    MessageCreateParamsStreaming as BetaMessageCreateParams,
)
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from anthropic.types.tool_result_block_param import Content
from pydantic import BaseModel
import pytest
from typing_extensions import get_type_hints, is_typeddict

from rest_adapter.anthropic.messages import blocks, schema
from tests.rest_adapter.anthropic.conftest import post
from tests.rest_adapter.conftest import Adapter


def types_in(kind: Any) -> Iterator[str]:
    """The values of `type` of all members of a union."""
    if is_typeddict(kind):
        yield from names_in(get_type_hints(kind)["type"])
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from names_in(kind.model_fields["type"].annotation)
    else:
        for member in get_args(kind):
            yield from types_in(member)


def names_in(hint: Any) -> Iterator[str]:
    for member in get_args(hint):
        if isinstance(member, str):
            yield member
        else:
            yield from names_in(member)


SERVED = {*types_in(blocks.UserBlock), *types_in(blocks.AssistantBlock)}
TYPES = sorted({*types_in(ContentBlockParam), *types_in(BetaContentBlockParam)})
OF_RESULTS = sorted({*types_in(Content), *types_in(BetaContent)})


def test_the_package_has_the_served_blocks() -> None:
    assert {*TYPES} >= SERVED
    assert {*OF_RESULTS} >= {"text", "image"}


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in SERVED])
def test_other_blocks_are_refused_with_advice(adapter: Adapter, kind: str) -> None:
    for role in ("user", "assistant"):
        messages = [{"role": role, "content": [{"type": kind}]}]
        response = post(adapter, messages=messages)
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert message.startswith("'messages.0.content.0.type' is not supported")


@pytest.mark.parametrize("kind", [kind for kind in OF_RESULTS if kind not in ("text", "image")])
def test_other_blocks_of_results_are_refused_with_advice(adapter: Adapter, kind: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": kind}]}
    response = post(adapter, [result])
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("'messages.0.content.0.content.0.type' is not supported")


def test_every_field_of_the_package_is_known() -> None:
    known = {
        *schema.MessagesRequest.model_fields,
        *schema._IGNORED,
        *schema._NEUTRAL,
        *schema._ELSEWHERE,
        "betas",  # a header
    }
    kinds: list[Any] = [MessageCreateParamsStreaming, MessageCountTokensParams]
    kinds += [BetaMessageCreateParams, BetaMessageCountTokensParams]
    for kind in kinds:
        assert {*get_type_hints(kind)} <= known


@pytest.mark.parametrize(
    ("kind", "model", "ignored"),
    [
        (ToolParam, schema.Tool, schema._IGNORED_OF_TOOLS),
        (BetaToolParam, schema.Tool, schema._IGNORED_OF_TOOLS),
        (TextBlockParam, blocks.TextBlock, blocks.IGNORED),
        (ImageBlockParam, blocks.ImageBlock, blocks.IGNORED),
        (ToolUseBlockParam, blocks.ToolUseBlock, blocks.IGNORED),
        (ToolResultBlockParam, blocks.ToolResultBlock, blocks.IGNORED),
        (ThinkingBlockParam, blocks.ThinkingBlock, blocks.IGNORED),
        (ThinkingConfigEnabledParam, schema.Thinking, ()),
        (OutputConfigParam, schema.OutputConfig, ()),
        (ImageTransformationsParam, blocks.ImageTransformations, ()),
        (ToolChoiceToolParam, schema.ToolChoice, ()),
    ],
)
def test_every_field_of_an_object_is_known(kind: Any, model: Any, ignored: Any) -> None:
    assert {*get_type_hints(kind)} <= {*model.model_fields, *ignored}
