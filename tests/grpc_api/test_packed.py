"""Large responses are serialised in pieces: no call of C copies or writes all of one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from google.protobuf.message import Message
import pytest

from inference_service.domain import (
    Delta,
    EndReason,
    Finished,
    LogprobEntry,
    Started,
    StopTrigger,
    TokenLogprob,
    TokenUsage,
)
from inference_service.grpc_api import (
    chat_service,
    completion_service,
    responses,
    tokenize_service,
)
from inference_service.grpc_api import packed as packed_module
from inference_service.grpc_api.packed import PIECE, Packed, embedded, packed
from inference_service.grpc_api.responses import gather
from inference_service.sampling import Sampling
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.grpc_api.asking import spec_of
from tests.grpc_api.conftest import Service


REQUEST: Any = SimpleNamespace(model="m", logprobs=3, prompt_logprobs=3, n=2)
USAGE = TokenUsage(prompt_tokens=1, image_tokens=0)
ANSWERS = (chat_pb.CreateChatCompletionResponse, completion_pb.CreateCompletionResponse)


def entry(number: int) -> LogprobEntry:
    token = TokenLogprob(token_id=number, text="t", data=b"t", logprob=-1.0, rank=1)
    return LogprobEntry(chosen=token, top=(token,) * 3)


async def events(positions: int, step: int):
    yield Started(
        request_id="r",
        created=7,
        n=2,
        usage=USAGE,
        images=(),
        sampling=Sampling(max_tokens=1),
        stop_strings=(),
        stop_token_ids=(),
        include_stop_string=False,
        prompt_text="text",
    )
    for start in range(0, positions, step):
        entries = tuple(map(entry, range(start, start + step)))
        yield Delta(choice_index=0, prompt_logprobs=entries)
    for start in range(0, positions, step):
        for index in range(2):
            entries = tuple(entry(index + number) for number in range(start, start + step))
            yield Delta(choice_index=index, text="a", token_ids=(start,), logprobs=entries)
    for index in range(2):
        yield Finished(choice_index=index, reason=EndReason.STOP, trigger=StopTrigger())
    yield USAGE


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("positions", [0, 6, 600])
async def test_an_answer_in_pieces_is_the_whole_answer(kind: Any, positions: int) -> None:
    answer = await gather(events(positions, 3), REQUEST)
    found = kind.FromString(answer.packed().data)
    whole = kind(started=answer.started, choices=answer.choices, usage=answer.usage)
    whole.started.prompt_logprobs.extend(
        map(responses._logprob_entry, map(entry, range(positions)))
    )
    for index, choice in enumerate(whole.choices):
        of_answer = (entry(index + number) for number in range(positions))
        choice.logprobs.extend(map(responses._logprob_entry, of_answer))
    assert found == whole
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.HasField("usage")
    assert found.started.prompt_text == "text"


def test_both_services_have_the_same_answer() -> None:
    chat, text = (kind.DESCRIPTOR.fields for kind in ANSWERS)
    assert [(field.name, field.number, field.message_type) for field in chat] == [
        (field.name, field.number, field.message_type) for field in text
    ]


async def test_no_message_has_all_log_probabilities(monkeypatch) -> None:
    """Each copy of such a message, and its serialisation, would be one call of C over all of it."""
    sizes = []

    def noted(kind: Any) -> Any:
        def make(*args: Any, **fields: Any) -> Any:
            message = kind(*args, **fields)
            sizes.append(message.ByteSize())
            return message

        return make

    monkeypatch.setattr(generation_pb, "Started", noted(generation_pb.Started))
    monkeypatch.setattr(generation_pb, "Choice", noted(generation_pb.Choice))
    answer = await gather(events(600, 3), REQUEST)
    sizes += [answer.started.ByteSize(), *(choice.ByteSize() for choice in answer.choices)]
    assert len(answer.packed().data) > 100_000
    assert max(sizes) < 5_000


@pytest.mark.parametrize("count", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_values_in_pieces_are_all_values(count: int) -> None:
    ids, strings = range(count), [f"{number % 97}" for number in range(count)]
    data = packed(
        tokenize_pb.TokenizeResponse(max_context_tokens=5), token_ids=ids, token_strings=strings
    ).data
    whole = tokenize_pb.TokenizeResponse(token_ids=ids, token_strings=strings, max_context_tokens=5)
    assert tokenize_pb.TokenizeResponse.FromString(data) == whole


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2**21])
def test_an_embedded_message_has_the_length_of_its_parts(size: int) -> None:
    text = usage_pb.TokenLogprob(token="x" * size).SerializeToString()
    chosen = usage_pb.LogprobEntry.CHOSEN_FIELD_NUMBER
    rank = usage_pb.TokenLogprob(rank=3).SerializeToString()
    data = b"".join(embedded(chosen, iter([text, rank])))
    found = usage_pb.LogprobEntry.FromString(data)
    assert (found.chosen.token, found.chosen.rank) == ("x" * size, 3)


async def answers(service: Service) -> dict[str, Message]:
    """The unary answers that have something for each token, by the module that serves them."""
    counting = chat_pb.CountTokensRequest(spec=spec_of("x" * 300))
    counting.spec.response.return_prompt_token_ids = True
    chat = chat_pb.RenderChatCompletionRequest(spec=spec_of("x" * 300), return_token_strings=True)
    text = completion_pb.RenderCompletionRequest(return_token_strings=True)
    text.spec.MergeFrom(completion_pb.CompletionSpec(model="echo", text="x" * 300))
    tokenising = tokenize_pb.TokenizeRequest(text="x" * 300, return_token_strings=True)
    tokens = tokenize_grpc.TokenizeServiceStub(service.channel)
    found: dict[str, Any] = {
        "CountTokens": await service.chat.CountTokens(counting, timeout=20),
        "RenderChatCompletion": await service.chat.RenderChatCompletion(chat, timeout=20),
        "RenderCompletion": await service.completions.RenderCompletion(text, timeout=20),
        "Tokenize": await tokens.Tokenize(tokenising, timeout=20),
    }
    for response in (found["RenderChatCompletion"], found["RenderCompletion"]):
        assert response.started.request_id
        response.started.ClearField("request_id")
        response.started.ClearField("created")
        response.started.effective_settings.sampling.ClearField("seed")
    return found


async def test_what_there_is_for_each_token_comes_in_pieces(service: Service, monkeypatch) -> None:
    whole = await answers(service)
    made: list[str] = []

    def noted(message: Message, **values: Any) -> Packed:
        assert all(len(each) >= 300 for each in values.values())
        made.extend(f"{message.DESCRIPTOR.name}.{name}" for name in values)
        return packed(message, **values)

    monkeypatch.setattr(packed_module, "PIECE", 7)
    for module in (chat_service, completion_service, tokenize_service):
        monkeypatch.setattr(module, "packed", noted)
    assert await answers(service) == whole
    assert made == [
        "CountTokensResponse.prompt_token_ids",
        "RenderChatCompletionResponse.token_strings",
        "RenderCompletionResponse.token_strings",
        "TokenizeResponse.token_ids",
        "TokenizeResponse.token_strings",
    ]
