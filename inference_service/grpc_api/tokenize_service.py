"""Serves TokenizeService: token ids of texts, and texts of token ids."""

from __future__ import annotations

from inference_service.backend.base import Backend
from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api import work
from inference_service.grpc_api.call_context import Context, this_call
from inference_service.grpc_api.field_checks import check_token_ids
from inference_service.grpc_api.generation import until
from inference_service.grpc_api.model_names import canonical_name
from inference_service.grpc_api.packed import Packed, packed
from inference_service.grpc_api.wire import expect_answer, message_bytes
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc


_MAX_TOKEN_IDS = 2**18
"""Their text fits into a message."""
_BYTES_PER_CHARACTER = 16
"""About the most that a token with its string takes."""


class TokenizeServicer(tokenize_grpc.TokenizeServiceServicer):
    """Serves TokenizeService."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Tokenize(  # noqa: N802 - the proto's name
        self, request: tokenize_pb.TokenizeRequest, context: Context
    ) -> Packed:
        """Returns the token ids of a text."""
        del context
        call = this_call()
        canonical_name(request.model, self._backend.names, field="model")
        parse_special = request.parse_special or not request.HasField("parse_special")
        vocabulary = self._backend.vocabulary
        await expect_answer(_BYTES_PER_CHARACTER * message_bytes())
        async with until(call.deadline):
            token_ids = await vocabulary.tokenize(
                request.text, call.request_id, call.caller, parse_special=parse_special
            )
            strings: tuple[str, ...] = ()
            if request.return_token_strings:
                strings = await vocabulary.strings(token_ids, call.caller)
        return await work.for_size(
            work.BYTES_PER_TOKEN * len(token_ids),
            lambda: packed(
                tokenize_pb.TokenizeResponse(
                    max_context_tokens=self._backend.describe().max_context_tokens
                ),
                token_ids=token_ids,
                token_strings=strings,
            ),
        )

    async def Detokenize(  # noqa: N802
        self, request: tokenize_pb.DetokenizeRequest, context: Context
    ) -> tokenize_pb.DetokenizeResponse:
        """Returns the text of token ids."""
        del context
        call = this_call()
        canonical_name(request.model, self._backend.names, field="model")
        count = len(request.token_ids)
        if count > _MAX_TOKEN_IDS:
            raise InvalidArgumentError(
                f"token_ids has {count} ids, but at most {_MAX_TOKEN_IDS} are allowed.",
                field="token_ids",
            )
        await expect_answer(work.MAX_TOKEN_BYTES * count)
        token_ids = await work.for_size(work.BYTES_PER_TOKEN * count, lambda: _checked(request))
        async with until(call.deadline):
            text = await self._backend.vocabulary.detokenize(
                token_ids,
                call.request_id,
                call.caller,
                skip_special=request.skip_special_tokens,
            )
        return tokenize_pb.DetokenizeResponse(text=text)


def _checked(request: tokenize_pb.DetokenizeRequest) -> tuple[int, ...]:
    token_ids = tuple(request.token_ids)
    if token_ids:
        check_token_ids((min(token_ids),), "token_ids")  # int32 bounds the others
    return token_ids
