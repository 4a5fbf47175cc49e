"""The route POST /v1/responses/compact: the model summarises a conversation, so that it can go on with fewer tokens.

What the application and the user wrote stays as it is; answers, calls and their outputs are replaced by the summary.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.openai import answer
from rest_adapter.openai.responses.blobs import pack
from rest_adapter.openai.responses.items import COMPACTION, AnyItem, MessageItem
from rest_adapter.openai.responses.listing import documents_of, new_id
from rest_adapter.openai.responses.requests import prepare
from rest_adapter.openai.responses.resource import usage_document
from rest_adapter.openai.responses.schema import parse_compact
from rest_adapter.reply import json_reply
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()
_TASK: Final = (
    "Summarise the conversation above, so that it can be continued without your answers and the results of tools: keep "
    "every fact, decision, result and open question that may matter. Write the summary only."
)


@router.post("/v1/responses/compact")
async def compact_conversation(request: Request) -> Response:
    """Answers with the messages of user and application, and one compaction item."""
    prepared = await prepare(request, parse_compact)
    conversation = prepared.conversation
    prepared.spec.messages.add(role=message_pb.ROLE_USER).parts.add(text=_TASK)
    return await json_reply(
        request,
        shared(request).service.create_chat(
            prepared.spec,
            metadata=call_metadata(request),
            spec_bytes=prepared.spec_bytes,
        ),
        lambda response: _document(response, (*conversation.history, *conversation.items)),
        prepared.param_of,
        repeated_bytes=prepared.spec_bytes,
    )


def _document(
    response: chat_pb.CreateChatCompletionResponse, items: tuple[AnyItem, ...]
) -> dict[str, Any]:
    """OpenAI's `response.compaction`.

    Raises:
        ApiError: The summary was aborted.
    """
    [choice] = response.choices
    answer.finish_reason(choice.finish_reason)
    kept = [item for item in items if isinstance(item, MessageItem) and item.role != "assistant"]
    summary = {
        "type": "compaction",
        "id": new_id("cmp"),
        "encrypted_content": pack(COMPACTION, choice.text),
    }
    return {
        "id": new_id("resp"),
        "object": "response.compaction",
        "created_at": response.started.created,
        "output": [*documents_of(kept), summary],
        "usage": usage_document(response.usage),
    }
