"""Every error of the contract: code, reason, field and further details, over a socket."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import grpc.aio
import pytest

from inference_service.engine_client.interface import EngineState
from inference_service.engine_protocol.messages import EngineFailure
from inference_service.errors import InvalidArgumentError, OutOfMemoryError
from inference_service.grpc_api.request_options import generation_options
from inference_service.settings import ServiceSettings
from qwenvl.errors import BY_REASON, DOMAIN
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.grpc_api.asking import image_part, refusal, spec_of, until, user
from tests.grpc_api.conftest import OpenService, Service
from tests.support.images import draw


PNG = draw("red", "circle").png
STOP, LOGPROBS = sampling_pb.StopOptions, sampling_pb.LogprobOptions
TOOL = message_pb.Tool(name="f")


def role(number: Any, **fields: Any) -> chat_pb.ChatCompletionSpec:
    return spec_of(messages=[message_pb.Message(role=number, parts=user("x").parts, **fields)])


def sampling(**options: Any) -> chat_pb.ChatCompletionSpec:
    return spec_of("x", sampling=options)


INVALID = {
    "spec.messages": spec_of(messages=[]),
    "spec.messages[0].role": role(0),
    "spec.messages[0].parts": spec_of(),
    "spec.messages[0].parts[1]": spec_of("x", message_pb.Part()),
    "spec.messages[0].parts[0].image": spec_of(message_pb.Part(image=message_pb.Image())),
    "spec.messages[0].parts[0].image.uuid": spec_of(image_part(PNG, uuid="u" * 257)),
    "spec.messages[0].parts[0].image.detail": spec_of(image_part(PNG, detail=9)),
    "spec.messages[0].parts[0].image.min_pixels": spec_of(image_part(PNG, min_pixels=0)),
    "spec.messages[0].parts[0].image.max_pixels": spec_of(image_part(PNG, max_pixels=-5)),
    "spec.messages[0].parts[0].image.oversized": spec_of(image_part(PNG, oversized=9)),
    "spec.messages[0].parts[0].video.frames": spec_of(message_pb.Part(video=message_pb.Video())),
    "spec.messages[0].parts[0].video.fps": spec_of(
        message_pb.Part(video=message_pb.Video(frames=[message_pb.Image(data=b"x")], fps=0))
    ),
    "spec.messages[0].parts[0].video.frames[1]": spec_of(
        message_pb.Part(
            video=message_pb.Video(frames=[message_pb.Image(data=b"x"), message_pb.Image()])
        )
    ),
    "spec.messages[0].name": role(message_pb.ROLE_USER, name="n" * 65),
    "spec.sampling.temperature": sampling(temperature=2.01),
    "spec.sampling.top_p": sampling(top_p=-0.1),
    "spec.sampling.top_k": sampling(top_k=-2),
    "spec.sampling.min_p": sampling(min_p=math.nan),
    "spec.sampling.repetition_penalty": sampling(repetition_penalty=0),
    "spec.sampling.presence_penalty": sampling(presence_penalty=-2.5),
    "spec.sampling.frequency_penalty": sampling(frequency_penalty=math.inf),
    "spec.sampling.max_tokens": sampling(max_tokens=0),
    "spec.sampling.min_tokens": sampling(min_tokens=5, max_tokens=4),
    "spec.sampling.logit_bias": sampling(logit_bias={1: 101}),
    "spec.sampling.allowed_token_ids": sampling(allowed_token_ids=[-1]),
    "spec.sampling.bad_words": sampling(bad_words=["a"] * 257),
    "spec.stop.strings": spec_of("x", stop=STOP(strings=["a"] * 65)),
    "spec.stop.token_ids": spec_of("x", stop=STOP(token_ids=[-1])),
    "spec.logprobs.top_logprobs": spec_of("x", logprobs=LOGPROBS(top_logprobs=21)),
    "spec.logprobs.prompt_logprobs": spec_of("x", logprobs=LOGPROBS(prompt_logprobs=-1)),
    "spec.n": spec_of("x", n=5),
    "spec.request_id": spec_of("x", request_id="not\nprintable"),
    "spec.cache_salt": spec_of("x", cache_salt="s" * 129),
    "spec.media.max_pixels": spec_of("x", media=generation_pb.MediaOptions(max_pixels=0)),
    "spec.media.oversized": spec_of("x", media={"oversized": 9}),
    "spec.template.continue_final_message": spec_of(
        "x", template=chat_pb.TemplateOptions(continue_final_message=True)
    ),
}
INVALID_TOO = {
    "n = 0": ("spec.n", spec_of("x", n=0)),
    "temperature = NaN": ("spec.sampling.temperature", sampling(temperature=math.nan)),
    "301 biases": ("spec.sampling.logit_bias", sampling(logit_bias=dict.fromkeys(range(301), 1.0))),
    "NaN bias": ("spec.sampling.logit_bias", sampling(logit_bias={1: math.nan})),
    "empty stop string": ("spec.stop.strings", spec_of("x", stop=STOP(strings=[""]))),
    "long stop string": ("spec.stop.strings", spec_of("x", stop=STOP(strings=["é" * 129]))),
    "65 stop tokens": ("spec.stop.token_ids", spec_of("x", stop=STOP(token_ids=range(65)))),
    "bias outside the vocabulary": ("spec.sampling.logit_bias", sampling(logit_bias={263: 1})),
    "allowed outside the vocabulary": (
        "spec.sampling.allowed_token_ids",
        sampling(allowed_token_ids=[5, 263]),
    ),
    "262,145 allowed tokens": (
        "spec.sampling.allowed_token_ids",
        sampling(allowed_token_ids=[1] * (2**18 + 1)),
    ),
    "empty bad word": ("spec.sampling.bad_words", sampling(bad_words=["a", ""])),
    "long bad word": ("spec.sampling.bad_words", sampling(bad_words=["é" * 129])),
    "nothing but bad words": (
        "spec.sampling.bad_words",
        sampling(allowed_token_ids=[64], bad_words=["a"]),
    ),
    "stop outside the vocabulary": (
        "spec.stop.token_ids",
        spec_of("x", stop=STOP(token_ids=[263])),
    ),
    "long request id": ("spec.request_id", spec_of("x", request_id="i" * 129)),
    "future role": ("spec.messages[0].role", role(99)),
}


def with_tools(*tools: message_pb.Tool, **choice: Any) -> chat_pb.ChatCompletionSpec:
    return spec_of("x", tools=tools, tool_choice=message_pb.ToolChoice(**choice))


CALL = message_pb.ToolCall(id="1", name="f")
DEEP = f'{{"a": {"[" * 65 + "]" * 65}}}'
INVALID_TOOLS = {
    "no name": ("spec.tools[0].name", with_tools(message_pb.Tool())),
    "a name with a space": ("spec.tools[1].name", with_tools(TOOL, message_pb.Tool(name="a b"))),
    "a long name": ("spec.tools[0].name", with_tools(message_pb.Tool(name="n" * 65))),
    "one name twice": ("spec.tools[1].name", with_tools(TOOL, TOOL)),
    "257 tools": ("spec.tools", with_tools(*[message_pb.Tool(name=f"f{i}") for i in range(257)])),
    "a schema that is no JSON": (
        "spec.tools[0].parameters_json_schema",
        with_tools(message_pb.Tool(name="f", parameters_json_schema="{")),
    ),
    "a schema that is no object": (
        "spec.tools[0].parameters_json_schema",
        with_tools(message_pb.Tool(name="f", parameters_json_schema="[]")),
    ),
    "a deep schema": (
        "spec.tools[0].parameters_json_schema",
        with_tools(message_pb.Tool(name="f", parameters_json_schema=DEEP)),
    ),
    "a long schema": (
        "spec.tools[0].parameters_json_schema",
        with_tools(message_pb.Tool(name="f", parameters_json_schema=" " * (2**16 + 1))),
    ),
    "long descriptions": (
        "spec.tools",
        with_tools(message_pb.Tool(name="f", description="x" * (2**20 + 1))),
    ),
    "an unknown function": (
        "spec.tool_choice.function_name",
        with_tools(TOOL, function_name="g"),
    ),
    "an unknown function among the allowed": (
        "spec.tool_choice.allowed_names",
        with_tools(TOOL, allowed_names=["f", "g"]),
    ),
    "a function that is not allowed": (
        "spec.tool_choice.function_name",
        with_tools(TOOL, message_pb.Tool(name="g"), function_name="g", allowed_names=["f"]),
    ),
    "required without tools": (
        "spec.tool_choice.mode",
        with_tools(mode="TOOL_CHOICE_MODE_REQUIRED"),
    ),
    "a future mode": ("spec.tool_choice.mode", with_tools(TOOL, mode=99)),
    "a strict schema that cannot be enforced": (
        "spec.tools[0].parameters_json_schema",
        with_tools(message_pb.Tool(name="f", parameters_json_schema='{"not": {}}', strict=True)),
    ),
    "a form beside a required call": (
        "spec.constraint",
        spec_of(
            "x",
            tools=[TOOL],
            tool_choice=message_pb.ToolChoice(mode="TOOL_CHOICE_MODE_REQUIRED"),
            constraint=sampling_pb.Constraint(json_object=True),
        ),
    ),
    "a call of the user": (
        "spec.messages[0].tool_calls",
        role(message_pb.ROLE_USER, tool_calls=[CALL]),
    ),
    "reasoning of the user": (
        "spec.messages[0].reasoning",
        role(message_pb.ROLE_USER, reasoning="hm"),
    ),
    "a call id of the user": (
        "spec.messages[0].tool_call_id",
        role(message_pb.ROLE_USER, tool_call_id="1"),
    ),
    "a result of the user": (
        "spec.messages[0].parts[0].tool_result",
        spec_of(message_pb.Part(tool_result=message_pb.ToolResult(content="4"))),
    ),
    "a call without a name": (
        "spec.messages[0].tool_calls[0].name",
        role(message_pb.ROLE_ASSISTANT, tool_calls=[message_pb.ToolCall(id="1")]),
    ),
    "deep arguments": (
        "spec.messages[0].tool_calls[0].arguments_json",
        role(
            message_pb.ROLE_ASSISTANT,
            tool_calls=[message_pb.ToolCall(name="f", arguments_json=DEEP)],
        ),
    ),
    "an unknown effort": (
        "spec.template.reasoning_effort",
        spec_of("x", template=chat_pb.TemplateOptions(reasoning_effort="huge")),
    ),
    "a call that is continued": (
        "spec.template.continue_final_message",
        chat_pb.ChatCompletionSpec(
            messages=[message_pb.Message(role=message_pb.ROLE_ASSISTANT, tool_calls=[CALL])],
            template=chat_pb.TemplateOptions(continue_final_message=True),
        ),
    ),
}
UNSUPPORTED = {
    "spec.messages[0].parts[0].video.frames[0]": spec_of(
        message_pb.Part(video=message_pb.Video(frames=[message_pb.Image(data=b"x", max_pixels=9)]))
    ),
    "spec.messages[0].parts[0].video.frames[1]": spec_of(
        message_pb.Part(
            video=message_pb.Video(
                frames=[
                    message_pb.Image(data=b"x"),
                    message_pb.Image(data=b"x", oversized=message_pb.OVERSIZED_IMAGE_DOWNSIZE),
                ]
            )
        )
    ),
}


async def refused(service: Service, spec: chat_pb.ChatCompletionSpec, reason: str, field: str = ""):
    """Answer and stream refuse alike, and leave nothing behind."""
    got = await refusal(service.create(spec))
    assert (got.info.reason, got.field) == (reason, field), got
    assert got.info.domain == DOMAIN
    assert got.code is BY_REASON[reason].grpc_code
    assert got.message
    stream = await refusal(_drained(service.stream(spec)))
    assert (stream.info.reason, stream.field) == (reason, field)
    assert not service.engine.live
    assert service.backend.in_flight == 0
    return got


async def _drained(stream: grpc.aio.UnaryStreamCall) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("field", INVALID)
async def test_invalid_argument_names_its_field(service: Service, field: str) -> None:
    await refused(service, INVALID[field], "INVALID_ARGUMENT", field)


@pytest.mark.parametrize("case", INVALID_TOO)
async def test_invalid_argument_at_the_edge(service: Service, case: str) -> None:
    field, spec = INVALID_TOO[case]
    await refused(service, spec, "INVALID_ARGUMENT", field)


@pytest.mark.parametrize("case", INVALID_TOOLS)
async def test_invalid_tools_are_named(service: Service, case: str) -> None:
    field, spec = INVALID_TOOLS[case]
    await refused(service, spec, "INVALID_ARGUMENT", field)


@pytest.mark.parametrize("field", UNSUPPORTED)
async def test_known_but_unsupported_is_never_ignored(service: Service, field: str) -> None:
    await refused(service, UNSUPPORTED[field], "UNSUPPORTED_PARAMETER", field)


async def test_tool_choice_none_is_no_wish_for_tools(service: Service) -> None:
    none = message_pb.ToolChoice(mode=message_pb.TOOL_CHOICE_MODE_NONE)
    assert (await service.create(spec_of("x", tool_choice=none))).choices[0].text == "x"


@pytest.mark.parametrize("limit", ["temperature=2", "n=4", "id=128", "salt=128", "stops=4"])
async def test_values_at_the_limit_are_taken(service: Service, limit: str) -> None:
    spec = {
        "temperature=2": sampling(temperature=2.0),
        "n=4": spec_of("x", n=4),
        "id=128": spec_of("x", request_id="i" * 128),
        "salt=128": spec_of("x", cache_salt="s" * 128),
        "stops=4": spec_of("x", stop=STOP(strings=["q" * 256] * 4, token_ids=range(64, 128))),
    }[limit]
    assert (await service.create(spec)).choices


async def test_unknown_model(service: Service) -> None:
    got = await refused(service, spec_of("x", model="gpt-17"), "MODEL_NOT_FOUND", "spec.model")
    assert got.resource == "gpt-17"
    assert dict(got.info.metadata) == {"model": "gpt-17"}
    unknown = await refusal(service.models.GetModel(model_pb.GetModelRequest(name="gpt-17")))
    assert (unknown.code, unknown.resource) == (grpc.StatusCode.NOT_FOUND, "gpt-17")


async def test_an_empty_name_is_the_canonical_model(service: Service) -> None:
    assert (await service.create(spec_of("x", model=""))).started.model == "echo"
    completed = await service.completions.CreateCompletion(
        completion_pb.CreateCompletionRequest(spec=completion_pb.CompletionSpec(text="x"))
    )
    assert completed.started.model == "echo"
    got = await service.models.GetModel(model_pb.GetModelRequest())
    assert (got.model.name, got.model.canonical_name) == ("echo", "echo")


async def test_bad_images(service: Service) -> None:
    path = "spec.messages[0].parts[1].image"
    await refused(service, spec_of("x", image_part(b"no image")), "INVALID_IMAGE", path)
    await refused(service, spec_of("x", image_part(PNG[:-60])), "INVALID_IMAGE", path)
    await refused(service, spec_of("x", image_part(b"")), "INVALID_IMAGE", path)


async def test_too_many_and_too_large_images(open_service) -> None:
    service = await open_service(max_images=2, max_image_pixels=256 * 256 - 1)
    await refused(service, spec_of(*[image_part(PNG)] * 3, "x"), "TOO_MANY_IMAGES", "spec.messages")
    path = "spec.messages[0].parts[0].image"
    await refused(service, spec_of(image_part(PNG)), "IMAGE_TOO_LARGE", path)


REJECT = message_pb.OVERSIZED_IMAGE_REJECT
DOWNSIZE = message_pb.OVERSIZED_IMAGE_DOWNSIZE


@pytest.mark.parametrize(
    ("of_request", "of_image", "is_refused"),
    [
        (None, None, False),
        (None, REJECT, True),
        (REJECT, None, True),
        (REJECT, REJECT, True),
        (REJECT, DOWNSIZE, False),
        (DOWNSIZE, REJECT, True),
        (DOWNSIZE, None, False),
    ],
)
async def test_oversized_images(
    service: Service, of_request: Any, of_image: Any, is_refused: bool
) -> None:
    media = generation_pb.MediaOptions(oversized=of_request)
    spec = spec_of(image_part(PNG, max_pixels=40_000, oversized=of_image), "x", media=media)
    if not is_refused:
        assert (await service.create(spec)).choices
        return
    path = "spec.messages[0].parts[0].image"
    got = await refused(service, spec, "IMAGE_TOO_LARGE", path)
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT
    told = {"width": "256", "height": "256", "max_width": "200", "max_height": "200"}
    assert dict(got.info.metadata) == told | {"max_pixels": "40000"}
    fits = spec_of(image_part(PNG, max_pixels=256 * 256, oversized=of_image), "x", media=media)
    assert (await service.create(fits)).choices


async def test_oversized_images_of_a_raw_prompt(service: Service) -> None:
    media = generation_pb.MediaOptions(max_pixels=40_000, oversized=REJECT)
    spec = completion_pb.CompletionSpec(
        text="x", images=[message_pb.Image(data=PNG)], media=media, model="echo"
    )
    request = completion_pb.CreateCompletionRequest(spec=spec)
    got = await refusal(service.completions.CreateCompletion(request))
    assert (got.info.reason, got.field) == ("IMAGE_TOO_LARGE", "spec.images[0]")


async def test_urls_that_are_not_fetched(service: Service) -> None:
    path = "spec.messages[0].parts[0].image"

    def by_url(uri: str) -> chat_pb.ChatCompletionSpec:
        return spec_of(message_pb.Part(image=message_pb.Image(uri=uri)))

    await refused(service, by_url("http://127.0.0.1:1/x.png"), "IMAGE_URL_REFUSED", path)
    await refused(service, by_url("no url"), "INVALID_IMAGE_URL", path)


async def test_context_length(service: Service) -> None:
    got = await refused(service, spec_of("x" * 3000), "CONTEXT_LENGTH_EXCEEDED", "spec.messages")
    assert int(got.info.metadata["prompt_tokens"]) > 3000
    assert got.info.metadata["max_context_tokens"] == "2048"
    # The words by which LiteLLM, LangChain and others recognise an overflow.
    assert got.message.startswith("This model's maximum context length is 2048 tokens")
    assert "Please reduce the length of the messages" in got.message


async def test_max_tokens_above_the_room_is_lowered_and_told(service: Service) -> None:
    answer = await service.create(sampling(max_tokens=2**31 - 1))
    prompt = answer.started.prompt_usage.prompt_tokens
    assert answer.started.effective_settings.sampling.max_tokens == 2048 - prompt


async def test_max_tokens_above_the_room_is_refused_if_strict(open_service: OpenService) -> None:
    strict = await open_service(strict_max_tokens=True)
    path = "spec.sampling.max_tokens"
    got = await refused(strict, sampling(max_tokens=2040), "CONTEXT_LENGTH_EXCEEDED", path)
    assert got.message.startswith("This model's maximum context length is 2048 tokens")
    assert "--strict-max-tokens" in got.message
    assert got.info.metadata["max_tokens"] == "2040"
    room = 2048 - int(got.info.metadata["prompt_tokens"])
    assert f"at most {room}" in got.message
    assert (await strict.create(sampling(max_tokens=room))).choices


MESSAGES = {
    "top_p is 1.5, but must be between 0 and 1.": sampling(top_p=1.5),
    "repetition_penalty is 0, but must be between 0.001 and 10.": sampling(repetition_penalty=0),
    "min_p is -0.00001, but must be between 0 and 1.": sampling(min_p=-1e-5),
    "top_k is -2, but must be between -1 and 2147483647.": sampling(top_k=-2),
    "stop.strings[0] is '' with 0 bytes, but must have 1 to 256.": spec_of(
        "x", stop=STOP(strings=[""])
    ),
    "bad_words[1] is '' with 0 bytes, but must have 1 to 256.": sampling(bad_words=["a", ""]),
    "bad_words has 257 entries, but at most 256 are allowed.": sampling(bad_words=["a"] * 257),
    "stop.strings has 65 entries, but at most 64 are allowed.": spec_of(
        "x", stop=STOP(strings=["a"] * 65)
    ),
    "request_id is 'a b', but must have 1 to 128 printable ASCII characters and no spaces.": spec_of(
        "x", request_id="a b"
    ),
    "max_tokens is -1, but must be between 1 and 2147483647; leave it out for no limit but the rest of the"
    " context window (--default-max-tokens).": sampling(max_tokens=-1),
}


@pytest.mark.parametrize("message", MESSAGES)
async def test_a_message_names_field_value_and_limit(service: Service, message: str) -> None:
    got = await refusal(service.create(MESSAGES[message]))
    assert got.message == message


async def test_thinking_without_a_switch(service: Service) -> None:
    spec = spec_of("x")
    spec.template.enable_thinking = False
    assert (await service.create(spec)).choices
    spec.template.enable_thinking = True
    await refused(service, spec, "UNSUPPORTED_PARAMETER", "spec.template.enable_thinking")


@pytest.mark.parametrize(
    ("error", "reason", "field", "message"),
    [
        ("CONTEXT_LENGTH_EXCEEDED", "CONTEXT_LENGTH_EXCEEDED", "spec.messages", "It says."),
        ("IMAGE_TOO_LARGE", "IMAGE_TOO_LARGE", "spec.messages", "It says."),
        ("GPU_OUT_OF_MEMORY", "GPU_OUT_OF_MEMORY", "", "It says."),
        ("INTERNAL", "INTERNAL", "", "It says."),
        ("a new reason", "INTERNAL", "", "The engine failed on this request."),
    ],
)
async def test_engine_refuses(
    service: Service, error: str, reason: str, field: str, message: str
) -> None:
    figures = {"prompt_tokens": "7"}
    service.engine.fails_with = EngineFailure(reason=error, message="It says.", metadata=figures)
    got = await refusal(service.create(spec_of("x")))
    assert (got.info.reason, got.field) == (reason, field)
    assert got.message == message
    assert dict(got.info.metadata) == (figures if reason == error else {})


async def test_engine_failure_tells_when_to_try_again(service: Service) -> None:
    service.engine.fails_with = EngineFailure.of(OutOfMemoryError("Full.", retry_after_s=3.0))
    got = await refusal(service.create(spec_of("x", n=2)))
    assert (got.info.reason, got.retry_after_s) == ("GPU_OUT_OF_MEMORY", 3.0)


async def test_request_id_in_use(service: Service) -> None:
    service.engine.hold_at = 1
    first = asyncio.ensure_future(service.create(spec_of("x", request_id="same")))
    await until(lambda: ("same", 0) in service.engine.live)
    got = await refusal(service.create(spec_of("y", request_id="same")))
    assert (got.info.reason, got.field) == ("REQUEST_ID_IN_USE", "spec.request_id")
    assert got.code is grpc.StatusCode.ALREADY_EXISTS
    service.engine.resume.set()
    assert (await first).choices[0].text == "x"
    assert (await service.create(spec_of("y", request_id="same"))).choices[0].text == "y"


async def test_queue_full(open_service) -> None:
    service = await open_service(max_queue=2)
    service.engine.hold_at = 1
    held = [asyncio.ensure_future(service.create(spec_of("x"))) for _ in range(2)]
    await until(lambda: len(service.engine.live) == 2)
    got = await refusal(service.create(spec_of("y")))
    assert (got.info.reason, got.code) == ("QUEUE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert got.retry_after_s
    service.engine.resume.set()
    await asyncio.gather(*held)
    assert (await service.create(spec_of("y"))).choices[0].text == "y"


async def test_model_loading_then_ready(open_service) -> None:
    service = await open_service(ready=False)
    got = await refusal(service.create(spec_of("x")))
    assert (got.info.reason, got.code) == ("MODEL_LOADING", grpc.StatusCode.UNAVAILABLE)
    assert got.retry_after_s
    await service.engine.start()
    assert (await service.create(spec_of("x"))).choices[0].text == "x"


async def test_engine_death_and_recovery(service: Service) -> None:
    service.engine.hold_at = 2
    stream = service.stream(spec_of("hello"))
    reading = asyncio.ensure_future(refusal(_drained(stream)))
    await until(lambda: bool(service.engine.live))
    service.engine.become(EngineState.RESTARTING)
    got = await reading
    assert (got.info.reason, got.code) == ("ENGINE_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE)
    again = await refusal(service.create(spec_of("hello")))
    assert again.info.reason == "ENGINE_UNAVAILABLE"
    assert again.retry_after_s
    service.engine.hold_at = None
    await service.engine.start()
    assert (await service.create(spec_of("hello"))).choices[0].text == "hello"


async def test_message_over_the_limit(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.create(spec_of(image_part(b"\0" * (32 * 2**20 + 1))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await service.create(spec_of("x"))).choices[0].text == "x"


async def test_message_just_under_the_limit_is_read(open_service) -> None:
    service = await open_service(max_image_bytes=40 * 2**20)
    got = await refusal(service.create(spec_of(image_part(b"\0" * (32 * 2**20 - 4096)))))
    assert got.info.reason == "INVALID_IMAGE"


async def test_an_unexpected_error_discloses_only_an_id(
    service: Service, monkeypatch, caplog
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret /etc/path")

    monkeypatch.setattr(type(service.model.prompts), "build", broken)
    metadata = (("x-request-id", "trace-me"),)
    got = await refusal(service.create(spec_of("x"), metadata=metadata))
    assert (got.info.reason, got.code) == ("INTERNAL", grpc.StatusCode.INTERNAL)
    assert "secret" not in got.message
    assert got.client_request_id == "trace-me"
    assert got.request_id
    assert "ZeroDivisionError" in caplog.text
    assert "trace-me" in caplog.text
    assert got.request_id in caplog.text


async def test_abort_needs_ids(service: Service) -> None:
    got = await refusal(service.admin.Abort(admin_pb.AbortRequest()))
    assert (got.info.reason, got.field) == ("INVALID_ARGUMENT", "request_ids")


def test_at_most_300_biases_are_allowed() -> None:
    """Whatever the vocabulary is: the one of the service above has fewer tokens."""
    settings = ServiceSettings()
    options = generation_options(
        sampling(logit_bias=dict.fromkeys(range(300), 1.0)), "m", "id", settings
    )
    assert len(options.sampling.logit_bias or ()) == 300
    with pytest.raises(InvalidArgumentError, match="301 entries, but at most 300"):
        generation_options(sampling(logit_bias=dict.fromkeys(range(301), 1.0)), "m", "id", settings)
