"""Tools and reasoning over gRPC: what the engine writes becomes calls, reasoning and text, in one message or many."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import grpc.aio
import pytest
from tokenizers import AddedToken, Tokenizer

from inference_service.backend.served_model import ServedModel
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.grpc_api.asking import image_part, read_rest, refusal, spec_of, user
from tests.grpc_api.conftest import NAMES, OpenService, Service
from tests.support.images import draw
from tests.support.tool_templates import QWEN3_5, THINKING


SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
TOOLS = [
    message_pb.Tool(name="weather", description="The weather.", parameters_json_schema=SCHEMA),
    message_pb.Tool(name="now"),
]
CALLS = """Let me see.

<tool_call>
{"name": "weather", "arguments": {"city": "東京"}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call>"""
STOP, CALLED = usage_pb.FINISH_REASON_STOP, usage_pb.FINISH_REASON_TOOL_CALLS


async def streamed(service: Service, spec: chat_pb.ChatCompletionSpec) -> generation_pb.Choice:
    """The choice that a stream adds up to."""
    total = generation_pb.Choice()
    for event in await read_rest(service.stream(spec)):
        total.text += event.delta.text
        total.reasoning += event.delta.reasoning
        for call in event.delta.tool_calls:
            assert bool(call.id) == bool(call.name)
            if call.id:
                assert call.index == len(total.tool_calls)
                total.tool_calls.add(id=call.id, name=call.name)
            total.tool_calls[call.index].arguments_json += call.arguments_json
        if event.HasField("finished"):
            total.finish_reason = event.finished.reason
    return total


def calls_of(choice: generation_pb.Choice) -> list[tuple[str, str]]:
    return [(call.name, call.arguments_json) for call in choice.tool_calls]


async def test_calls_are_separate_from_the_text(service: Service) -> None:
    spec = spec_of(CALLS, tools=TOOLS)
    whole = (await service.create(spec)).choices[0]
    for choice in (whole, await streamed(service, spec)):
        assert choice.text == "Let me see."
        assert calls_of(choice) == [("weather", '{"city": "東京"}'), ("now", "{}")]
        assert choice.finish_reason == CALLED
    ids = [call.id for call in whole.tool_calls]
    assert len(set(ids)) == 2
    assert all(one.startswith("call_") for one in ids)


async def test_arguments_come_while_they_are_written(service: Service) -> None:
    pieces = [
        call.arguments_json
        for event in await read_rest(service.stream(spec_of(CALLS, tools=TOOLS)))
        for call in event.delta.tool_calls
        if call.index == 0
    ]
    assert len(pieces) > 10


async def test_without_tools_a_call_is_text(service: Service) -> None:
    for spec in (spec_of(CALLS), spec_of(CALLS, tools=TOOLS[:0])):
        choice = (await service.create(spec)).choices[0]
        assert (choice.text, choice.finish_reason) == (CALLS, STOP)


async def test_functions_that_are_not_declared_are_text(service: Service) -> None:
    choice = (await service.create(spec_of(CALLS, tools=TOOLS[1:]))).choices[0]
    assert choice.text.startswith("Let me see.\n\n<tool_call>")
    assert calls_of(choice) == [("now", "{}")]


async def test_each_choice_has_calls_of_its_own(service: Service) -> None:
    response = await service.create(spec_of(CALLS + "\n", tools=TOOLS, n=2))
    assert [len(choice.tool_calls) for choice in response.choices] == [2, 4]
    ids = [call.id for choice in response.choices for call in choice.tool_calls]
    assert len(set(ids)) == 6


async def test_no_call_is_read_or_sampled_if_none_is_wanted(
    service: Service, open_service: OpenService, thinking_model: ServedModel
) -> None:
    none = message_pb.ToolChoice(mode=message_pb.TOOL_CHOICE_MODE_NONE)
    choice = (await service.create(spec_of(CALLS, tools=TOOLS, tool_choice=none))).choices[0]
    assert (choice.text, choice.finish_reason) == (CALLS, STOP)
    assert "The weather." in await prompt(service, spec_of("x", tools=TOOLS, tool_choice=none))
    other = await open_service(served=thinking_model)
    response = await other.create(spec_of("x", tools=TOOLS, tool_choice=none))
    banned = thinking_model.tokenizer.added_tokens.get("<tool_call>")
    assert other.engine.requests[0].sampling.logit_bias == ((banned, float("-inf")),)
    assert not response.started.effective_settings.sampling.logit_bias
    await other.create(spec_of("x", tools=TOOLS))
    assert other.engine.requests[1].sampling.logit_bias == ()


async def test_one_call_at_most(service: Service) -> None:
    spec = spec_of(CALLS, tools=TOOLS, tool_choice=message_pb.ToolChoice(parallel=False))
    for choice in ((await service.create(spec)).choices[0], await streamed(service, spec)):
        assert calls_of(choice) == [("weather", '{"city": "東京"}')]
        assert choice.finish_reason == CALLED
    assert len(service.engine.aborted) == 2


@pytest.mark.parametrize("tokens", [20, 50, 70, 90])
async def test_the_maximum_length_inside_a_call(service: Service, tokens: int) -> None:
    spec = spec_of(CALLS, tools=TOOLS, sampling={"max_tokens": tokens})
    choice = (await service.create(spec)).choices[0]
    assert choice.finish_reason == usage_pb.FINISH_REASON_LENGTH
    arguments = "".join(arguments for _, arguments in calls_of(choice))
    assert '{"city": "東京"}'.startswith(arguments)
    if not choice.tool_calls:
        assert CALLS.startswith(choice.text)


async def test_a_stop_string_wins_over_a_call_that_is_not_complete(service: Service) -> None:
    stop = sampling_pb.StopOptions(strings=["京"])
    choice = (await service.create(spec_of(CALLS, tools=TOOLS, stop=stop))).choices[0]
    assert choice.finish_reason == STOP
    assert choice.stop_detail.stop_string == "京"
    assert calls_of(choice) == [("weather", '{"city": "東')]


async def prompt(service: Service, spec: chat_pb.ChatCompletionSpec) -> str:
    spec.response.return_prompt_text = True
    return (await service.create(spec)).started.prompt_text


async def test_calls_and_results_go_back_with_images(service: Service) -> None:
    call = message_pb.ToolCall(id="call_1", name="weather", arguments_json='{"city": "Oslo"}')
    parts = [
        message_pb.Part(tool_result=message_pb.ToolResult(content="A map:")),
        image_part(draw("red", "circle").png),
    ]
    messages = [
        user("How is it?"),
        message_pb.Message(role=message_pb.ROLE_ASSISTANT, tool_calls=[call]),
        message_pb.Message(role=message_pb.ROLE_TOOL, tool_call_id="call_1", parts=parts),
    ]
    spec = chat_pb.ChatCompletionSpec(messages=messages, tools=TOOLS)
    text = await prompt(service, spec)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert "<tool_response>\nA map:<|vision_start|><|image_pad|>" in text
    count = await service.chat.CountTokens(chat_pb.CountTokensRequest(spec=spec), timeout=20)
    assert (await service.create(spec)).usage.prompt_tokens == count.usage.prompt_tokens
    assert len(service.engine.pixels) == 1


@pytest.fixture(scope="module")
def thinking_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The fixture's model with a template that always opens reasoning, and with tokens for its tags."""
    directory = tmp_path_factory.mktemp("thinking")
    shutil.copytree(model_dir, directory, dirs_exist_ok=True)
    (directory / "chat_template.jinja").write_text(THINKING)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<tool_call>", "</think>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["vocab_size"] = tokenizer.get_vocab_size()
    (directory / "config.json").write_text(json.dumps(config))
    return ServedModel.load(directory, NAMES)


async def features(service: Service) -> set[str]:
    request = model_pb.GetModelRequest()
    return set((await service.models.GetModel(request, timeout=20)).model.features)


async def test_features_are_told(
    service: Service, open_service: OpenService, thinking_model: ServedModel
) -> None:
    assert await features(service) & {"tools", "reasoning"} == {"tools"}
    other = await open_service(served=thinking_model)
    assert await features(other) >= {"tools", "reasoning"}


async def test_reasoning_is_separate_and_counted(
    open_service: OpenService, thinking_model: ServedModel
) -> None:
    service = await open_service(served=thinking_model)
    thought = "The sky is 灰.\n"
    spec = spec_of(f"{thought}</think>\n\nRain. {CALLS}", tools=TOOLS)
    response = await service.create(spec)
    for choice in (response.choices[0], await streamed(service, spec)):
        assert choice.reasoning == "The sky is 灰."
        assert choice.text == "Rain. Let me see."
        assert len(choice.tool_calls) == 2
        assert choice.finish_reason == CALLED
    # A token for each byte, and one for the tag.
    assert response.usage.reasoning_tokens == len(thought.encode()) + 1


async def test_reasoning_that_is_cut_off(
    open_service: OpenService, thinking_model: ServedModel
) -> None:
    service = await open_service(served=thinking_model)
    response = await service.create(spec_of("Hm, well", sampling={"max_tokens": 4}))
    choice = response.choices[0]
    assert (choice.reasoning, choice.text) == ("Hm, ", "")
    assert choice.finish_reason == usage_pb.FINISH_REASON_LENGTH
    assert response.usage.reasoning_tokens == response.usage.completion_tokens == 4


async def test_reasoning_is_switched_by_effort(
    open_service: OpenService, model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(QWEN3_5)
    service = await open_service(served=ServedModel.load(tmp_path, NAMES))
    for effort, reasoning, text in (("high", "Hm.", ""), ("none", "", "Hm.")):
        template = chat_pb.TemplateOptions(reasoning_effort=effort)
        choice = (await service.create(spec_of("Hm.", template=template))).choices[0]
        assert (choice.reasoning, choice.text) == (reasoning, text)


async def test_a_template_s_refusal_is_the_caller_s_error(
    open_service: OpenService, model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(QWEN3_5)
    service = await open_service(served=ServedModel.load(tmp_path, NAMES))
    call = message_pb.ToolCall(name="now")
    messages = [
        message_pb.Message(role=message_pb.ROLE_ASSISTANT, tool_calls=[call]),
        message_pb.Message(role=message_pb.ROLE_TOOL),
    ]
    with pytest.raises(grpc.aio.AioRpcError, match="No user query found"):
        await service.create(chat_pb.ChatCompletionSpec(messages=messages))


@pytest.mark.parametrize("reasons", [False, True])
async def test_required_calls_are_a_form_of_the_answer(
    open_service: OpenService, thinking_model: ServedModel, model: ServedModel, reasons: bool
) -> None:
    service = await open_service(served=thinking_model if reasons else model)
    choice = message_pb.ToolChoice(function_name="now")
    spec = spec_of("x", tools=TOOLS, tool_choice=choice)
    await service.create(spec)
    [request] = service.engine.requests
    assert request.constraint is not None
    assert '\\"now\\"' in request.constraint.text
    assert "weather" not in request.constraint.text
    assert ("<tool_call>" in service.model.tokenizer.added_tokens) is reasons
    close_id = service.model.tokenizer.added_tokens.get("</think>")
    assert request.constraint_after == close_id
    await service.create(spec_of("x", tools=TOOLS))
    assert service.engine.requests[1].constraint is None


async def test_a_schema_that_cannot_be_enforced_is_none_for_the_grammar(service: Service) -> None:
    tool = message_pb.Tool(name="f", parameters_json_schema='{"not": {"required": ["x"]}}')
    choice = message_pb.ToolChoice(mode=message_pb.TOOL_CHOICE_MODE_REQUIRED)
    await service.create(spec_of("x", tools=[tool], tool_choice=choice))
    constraint = service.engine.requests[0].constraint
    assert constraint is not None
    assert '"not"' not in constraint.text


async def test_the_form_of_an_answer_begins_behind_the_reasoning(
    open_service: OpenService, thinking_model: ServedModel, model_dir: Path, tmp_path: Path
) -> None:
    form = sampling_pb.Constraint(json_object=True)
    service = await open_service(served=thinking_model)
    await service.create(spec_of("x", constraint=form))
    close_id = thinking_model.tokenizer.added_tokens["</think>"]
    assert service.engine.requests[0].constraint_after == close_id
    # Without a token for the end of the reasoning nobody could tell where the form begins.
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(THINKING)
    other = await open_service(served=ServedModel.load(tmp_path, NAMES))
    got = await refusal(other.create(spec_of("x", constraint=form)))
    assert (got.info.reason, got.field) == ("UNSUPPORTED_PARAMETER", "spec.constraint")
