"""DecisionService over a socket: answers, what the engine is asked, limits, and how requests end early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
import dataclasses
import math
import threading
from typing import Any

import grpc
import grpc.aio
import pytest

from inference_service.decisions import DecisionRequest, Decisions
from inference_service.engine_protocol.messages import EngineFailure, EngineRequest, Probe
from inference_service.errors import InternalError
from inference_service.grpc_api import decision_service
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.grpc_api.asking import image_part, refusal, text_part, until, user
from tests.grpc_api.conftest import OpenService, Service
from tests.support.images import draw
from tests.support.scrape import scrape


PNG = draw("red", "circle").png
Question = decision_pb.DecisionQuestion
Option = decision_pb.DecisionOption
BIG_IMAGE_TOKENS = 64  # 256 x 256 in steps of 32


def predicate(*parts: str | message_pb.Part, **fields: Any) -> Question:
    return Question(
        instructions=user(*parts).parts, predicate=decision_pb.PredicateQuestion(), **fields
    )


def choice(*options: str | bool | Option, text: str = "Which?", **fields: Any) -> Question:
    made = [
        option
        if isinstance(option, Option)
        else Option(flag=option)
        if isinstance(option, bool)
        else Option(text=option)
        for option in options
    ]
    return Question(
        instructions=[text_part(text)], choice=decision_pb.ChoiceQuestion(options=made), **fields
    )


def score(*levels: str, text: str = "How much?", **fields: Any) -> Question:
    made = [Option(text=level) for level in levels]
    return Question(
        instructions=[text_part(text)], score=decision_pb.ScoreQuestion(levels=made), **fields
    )


def spec_of(
    *questions: Question, evidence: Sequence[str | message_pb.Part] = ("Parcel 7",), **fields: Any
) -> decision_pb.DecisionSpec:
    values = {"model": "echo", "messages": [user(*evidence)], "questions": questions} | fields
    return decision_pb.DecisionSpec(**values)


async def decide(
    service: Service, spec: decision_pb.DecisionSpec, **options: Any
) -> decision_pb.CreateDecisionsResponse:
    request = decision_pb.CreateDecisionsRequest(spec=spec)
    return await service.decisions.CreateDecisions(request, **({"timeout": 20} | options))


def text_of(service: Service, request: EngineRequest, probe: Probe) -> str:
    """The whole prompt of a probe."""
    ids = [*request.prompt_token_ids, *probe.token_ids]
    return service.model.tokenizer.decode(ids, skip_special_tokens=False)


def by_text(
    service: Service, masses: Callable[[str, str], float]
) -> Callable[[EngineRequest, Probe], list[float]]:
    """An engine that judges a token by the prompt before it and its text."""

    def judge(request: EngineRequest, probe: Probe) -> list[float]:
        before = text_of(service, request, probe)
        texts = [service.model.tokenizer.token_text(i) for i in probe.candidate_ids]
        return [max(masses(before, text), 1e-30) for text in texts]

    return judge


async def test_answers_of_every_kind(service: Service) -> None:
    weights = {"Y": 0.3, "N": 0.1, "A": 0.1, "B": 0.4, "C": 0.3}
    service.engine.judges = by_text(service, lambda _, text: weights.get(text, 1.0))
    spec = spec_of(
        predicate("It is torn.", name="torn"),
        choice("red", Option(text="blue", description="any blue"), "none"),
        score("not", "a little", "badly", name=""),
        diagnostics=True,
        request_id="mine",
    )
    response = await decide(service, spec)

    torn, colour, dent = response.answers
    assert [answer.HasField("name") for answer in response.answers] == [True, False, True]
    assert (torn.name, dent.name) == ("torn", "")
    # "Yes", "yes", "No" and "no" by bytes: the first letters of the small ones have the probability 1 here.
    assert torn.predicate.probability == pytest.approx(1.3 / 2.4)
    assert torn.label_mass == 1.0
    assert colour.choice.option_index == 1
    assert list(colour.choice.probabilities) == pytest.approx([0.125, 0.5, 0.375])
    assert colour.choice.confidence == pytest.approx((3 * 0.5 - 1) / 2)
    assert colour.label_mass == pytest.approx(0.8)
    assert colour.top_is_label
    assert dent.score.score == pytest.approx(0.5 + 2 * 0.375)
    assert list(dent.score.probabilities) == pytest.approx([0.125, 0.5, 0.375])
    assert dent.score.confidence == pytest.approx(1 - 0.5 / (2 / 3))
    assert (response.request_id, response.model) == ("mine", "echo")
    assert response.prompt_format == 1
    assert response.created > 0


async def test_without_diagnostics_there_are_none(service: Service) -> None:
    [answer] = (await decide(service, spec_of(choice("a", "b")))).answers
    assert not answer.HasField("label_mass")
    assert not answer.HasField("top_is_label")


async def test_a_low_label_mass_is_a_refusal(service: Service) -> None:
    low = by_text(service, lambda before, _: 0.02 if "hard" in before else 0.2)
    service.engine.judges = low
    spec = spec_of(
        choice("a", "b", text="hard", name="x"), choice("a", "b", text="easy"), diagnostics=True
    )
    hard, easy = (await decide(service, spec)).answers
    assert hard.WhichOneof("kind") == "refused"
    assert hard.name == "x"
    assert hard.label_mass == pytest.approx(0.04)
    assert easy.WhichOneof("kind") == "choice"


async def test_the_question_stands_behind_the_input(service: Service) -> None:
    spec = spec_of(
        choice("red", Option(text="blue", description="any\nblue")),
        predicate("It is torn."),
        evidence=[image_part(PNG), "Parcel 7"],
    )
    await decide(service, spec)
    prompts = [
        text_of(service, request, probe)
        for request in service.engine.requests
        for probe in request.probes
    ]
    head = f"<|vision_start|>{'<|image_pad|>' * BIG_IMAGE_TOKENS}<|vision_end|>Parcel 7\n\n"
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert prompts[0] == (
        f"<|im_start|>user\n{head}Which?\n\nOptions:\nA: red\nB: blue - any blue\n\n"
        f"Answer with the letter of the best option only.{tail}"
    )
    assert prompts[1] == (
        f"<|im_start|>user\n{head}It is torn.\n\n"
        f"Is this true of the input above? Answer with Yes or No only.{tail}"
    )


async def test_the_input_is_computed_first_and_the_questions_share_it(service: Service) -> None:
    questions = [choice("a", "b", text=f"Number {index}?") for index in range(40)]
    response = await decide(service, spec_of(*questions, evidence=[image_part(PNG), "Look"]))

    first, *rest = service.engine.requests
    assert len(first.probes) == 1
    assert {request.prompt_token_ids for request in rest} == {first.prompt_token_ids}
    assert {request.images for request in rest} == {first.images}
    assert sum(len(request.probes) for request in rest) == 39
    # A quarter of the batch, so that others are not kept waiting.
    assert max(len(request.probes) for request in rest) == 64 // 4
    assert len(response.answers) == 40
    suffixes = sum(len(p.token_ids) for r in service.engine.requests for p in r.probes)
    usage = response.usage
    assert usage.prompt_tokens == usage.total_tokens == len(first.prompt_token_ids) + suffixes
    assert (usage.completion_tokens, usage.cached_tokens) == (0, 3)
    assert {detail.tokens for detail in usage.prompt_details} == {
        BIG_IMAGE_TOKENS,
        usage.prompt_tokens - BIG_IMAGE_TOKENS,
    }
    [image] = response.images
    assert (image.original_width, image.tokens) == (256, BIG_IMAGE_TOKENS)


async def test_images_of_a_question_are_its_own(service: Service) -> None:
    other = draw("blue", "star", size=(128, 128)).png
    same = choice("a", "b", text="Is this the same?")
    same.instructions.append(image_part(other))
    questions = choice("a", "b", text="First?"), same, choice("a", "b", text="Last?")
    response = await decide(service, spec_of(*questions, evidence=[image_part(PNG)]))

    shared, own, rest = service.engine.requests
    assert len(shared.images) == len(rest.images) == 1
    assert [span.num_tokens for span in own.images] == [BIG_IMAGE_TOKENS, 16]
    assert own.prompt_token_ids[: len(shared.prompt_token_ids)] == shared.prompt_token_ids
    [probe] = own.probes
    assert probe.token_ids == ()
    assert "Is this the same?" in text_of(service, own, probe)
    assert [image.tokens for image in response.images] == [BIG_IMAGE_TOKENS, 16]
    assert len(response.answers) == 3
    lengths = [len(p.token_ids) for r in (shared, rest) for p in r.probes]
    assert response.usage.prompt_tokens == sum(lengths) + len(own.prompt_token_ids)


async def test_a_turn_of_the_user_is_opened_behind_other_messages(service: Service) -> None:
    said = message_pb.Message(role=message_pb.ROLE_ASSISTANT, parts=[text_part("Fine.")])
    await decide(service, spec_of(choice("a", "b", text="Sure?"), messages=[user("How?"), said]))
    [request] = service.engine.requests
    prompt = text_of(service, request, request.probes[0])
    assert "<|im_start|>assistant\nFine.<|im_end|>\n<|im_start|>user\nSure?" in prompt


async def test_special_tokens_of_questions_are_text(service: Service) -> None:
    await decide(service, spec_of(predicate("A <|im_end|> here?"), predicate("None here?")))
    end = service.model.tokenizer.special_tokens["<|im_end|>"]
    for request in service.engine.requests:
        for probe in request.probes:
            ids = [*request.prompt_token_ids, *probe.token_ids]
            assert ids.count(end) == 1


async def test_more_options_than_letters(service: Service) -> None:
    options = list(map(str, range(100)))
    wanted = by_text(
        service, lambda before, text: 0.9 if before[-1] + text in ("\nB", "BD") else 0.01
    )
    service.engine.judges = wanted
    [answer] = (await decide(service, spec_of(choice(*options)))).answers
    assert len(answer.choice.probabilities) == 100
    assert math.fsum(answer.choice.probabilities) == pytest.approx(1)
    assert answer.choice.option_index == 26 + 3  # AA to AZ, then BA to BD


async def test_orders_of_the_options_are_averaged(service: Service) -> None:
    """The engine always prefers the first letter: with as many orders as options no option is better."""
    service.engine.judges = by_text(service, lambda _, text: 0.8 if text == "A" else 0.1)
    spec = spec_of(choice("red", "blue", "green"), score("a", "b"), predicate("x"), rotations=8)
    colour, dent, _ = (await decide(service, spec)).answers
    assert list(colour.choice.probabilities) == pytest.approx([1 / 3] * 3)
    assert list(dent.score.probabilities) == pytest.approx([8 / 9, 1 / 9])
    prompts = [text_of(service, r, p) for r in service.engine.requests for p in r.probes]
    lines = [prompt.partition("A: ")[2].partition("\n")[0] for prompt in prompts]
    assert lines.count("red") == lines.count("blue") == lines.count("green") == 1
    assert lines.count("a") == 1
    two = (await decide(service, spec_of(choice("a", "b", "c"), rotations=2))).answers[0]
    assert list(two.choice.probabilities) == pytest.approx([0.45, 0.45, 0.1])


async def test_one_level_is_certain(service: Service) -> None:
    [answer] = (await decide(service, spec_of(score("only")))).answers
    assert (answer.score.score, answer.score.confidence) == (0, 1)
    assert list(answer.score.probabilities) == [1]


async def test_a_plain_question(service: Service) -> None:
    spec = spec_of(choice("red", "dark red", "blue", True), prompt_format=2)
    wanted = {"B": 0.6, "b": 0.2}
    service.engine.judges = by_text(
        service,
        lambda before, text: wanted.get(text, 0.001) if before.endswith("assistant\n") else 0.5,
    )
    response = await decide(service, spec)
    assert response.prompt_format == 2
    assert response.answers[0].choice.option_index == 2
    prompt = text_of(service, service.engine.requests[0], service.engine.requests[0].probes[0])
    assert prompt.endswith("Parcel 7\nWhich?<|im_end|>\n<|im_start|>assistant\n")


async def test_long_options_are_not_answered_in_their_own_words(service: Service) -> None:
    question = choice("red", "very " * 13 + "long")
    refused = await refusal(decide(service, spec_of(question, prompt_format=2)))
    assert (refused.info.reason, refused.field) == ("INVALID_ARGUMENT", "spec.questions[0]")
    assert "at most 64" in refused.message
    assert len((await decide(service, spec_of(question))).answers) == 1


INVALID = {
    "spec.messages": spec_of(predicate("x"), messages=[]),
    "spec.messages[0].role": spec_of(
        predicate("x"), messages=[message_pb.Message(parts=user("x").parts)]
    ),
    "spec.messages[0].parts[0].image": spec_of(
        predicate("x"), evidence=[message_pb.Part(image=message_pb.Image())]
    ),
    "spec.media.min_pixels": spec_of(
        predicate("x"), media=generation_pb.MediaOptions(min_pixels=0)
    ),
    "spec.request_id": spec_of(predicate("x"), request_id="a b"),
    "spec.cache_salt": spec_of(predicate("x"), cache_salt="s" * 129),
    "spec.rotations": spec_of(predicate("x"), rotations=9),
    "spec.prompt_format": spec_of(predicate("x"), prompt_format=3),
    "spec.questions": spec_of(*[predicate("x")] * 401),
    "spec.questions[1]": spec_of(predicate("x"), Question(instructions=[text_part("x")])),
    "spec.questions[0].instructions": spec_of(predicate(" \n")),
    "spec.questions[0].instructions[1]": spec_of(predicate("x", message_pb.Part(refusal="no"))),
    "spec.questions[0].instructions[0].image": spec_of(
        predicate(message_pb.Part(image=message_pb.Image()), "x")
    ),
    "spec.questions[0].choice.options": spec_of(choice("alone")),
    "spec.questions[0].choice.options[2].text": spec_of(choice("a", "b", "a")),
    "spec.questions[0].choice.options[1]": spec_of(choice("a", Option(description="b"))),
    "spec.questions[0].choice.options[1].text": spec_of(choice("a", " ")),
    "spec.questions[0].score.levels": spec_of(score()),
    "spec.questions[1].score.levels": spec_of(predicate("x"), score(*map(str, range(256)))),
    "spec.questions[0].score.levels[0]": spec_of(
        Question(
            instructions=[text_part("x")],
            score=decision_pb.ScoreQuestion(levels=[Option(flag=True)]),
        )
    ),
}


@pytest.mark.parametrize("field", INVALID)
async def test_invalid_fields(service: Service, field: str) -> None:
    refused = await refusal(decide(service, INVALID[field]))
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert not service.engine.requests


async def test_an_oversized_image_is_refused_on_request(service: Service) -> None:
    media = generation_pb.MediaOptions(
        max_pixels=64 * 64, oversized=message_pb.OVERSIZED_IMAGE_REJECT
    )
    asked = choice("a", "b")
    asked.instructions.append(image_part(PNG))
    refused = await refusal(decide(service, spec_of(asked, media=media)))
    assert refused.info.reason == "IMAGE_TOO_LARGE"
    assert refused.field == "spec.questions[0].instructions[1].image"


async def test_no_question_is_invalid(service: Service) -> None:
    refused = await refusal(decide(service, spec_of()))
    assert refused.field == "spec.questions"
    assert "1 to 400" in refused.message


async def test_400_questions_and_255_options_are_allowed(service: Service) -> None:
    response = await decide(service, spec_of(*[predicate("x")] * 400))
    assert len(response.answers) == 400


@pytest.mark.parametrize(("questions", "thread"), [(1, "MainThread"), (5, "messages")])
async def test_large_answers_are_written_in_threads(
    service: Service, monkeypatch: pytest.MonkeyPatch, questions: int, thread: str
) -> None:
    threads: list[str] = []
    write = decision_service._response

    def noted(asked: DecisionRequest, decided: Decisions) -> decision_pb.CreateDecisionsResponse:
        threads.append(threading.current_thread().name)
        return write(asked, decided)

    monkeypatch.setattr(decision_service, "_response", noted)
    asked = score(*map(str, range(255)))
    response = await decide(service, spec_of(*[asked] * questions, prompt_format=2))
    assert len(response.answers) == questions
    assert [name.partition("_")[0] for name in threads] == [thread]


async def test_a_text_and_a_truth_value_differ(service: Service) -> None:
    [answer] = (await decide(service, spec_of(choice("true", True)))).answers
    assert len(answer.choice.probabilities) == 2


async def test_unknown_model(service: Service) -> None:
    refused = await refusal(decide(service, spec_of(predicate("x"), model="gpt-6-luna")))
    assert (refused.info.reason, refused.field) == ("MODEL_NOT_FOUND", "spec.model")


async def test_a_model_without_a_chat_format_cannot_decide(open_service: OpenService) -> None:
    any_service = await open_service()
    served = dataclasses.replace(any_service.model, decisions=None, no_decisions="It is a base.")
    service = await open_service(served=served)
    refused = await refusal(decide(service, spec_of(predicate("x"))))
    assert (refused.info.reason, refused.field) == ("UNSUPPORTED_PARAMETER", "spec.model")
    assert "It is a base." in refused.message


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (spec_of(predicate("x"), evidence=["long " * 2000]), "spec.messages"),
        (spec_of(predicate("x"), evidence=["lo ng " * 341]), "spec.messages"),
        (spec_of(predicate("x"), predicate("long " * 500)), "spec.questions[1]"),
        (spec_of(predicate("x"), evidence=["l " * 1000]), "spec.questions[0]"),
    ],
)
async def test_the_context_window(
    service: Service, spec: decision_pb.DecisionSpec, field: str
) -> None:
    refused = await refusal(decide(service, spec))
    assert refused.info.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert refused.field == field
    assert "maximum context length is 2048" in refused.message


async def test_a_failure_of_the_engine_fails_the_request(service: Service) -> None:
    service.engine.fails_with = EngineFailure.of(InternalError("broken"))
    refused = await refusal(decide(service, spec_of(predicate("x"))))
    assert refused.code is grpc.StatusCode.INTERNAL


async def test_a_caller_who_leaves_frees_the_engine(service: Service) -> None:
    service.engine.hold_at = 0
    request = decision_pb.CreateDecisionsRequest(
        spec=spec_of(predicate("x"), predicate("y"), request_id="left")
    )
    call = service.decisions.CreateDecisions(request)
    await until(lambda: bool(service.engine.live))
    call.cancel()
    await until(lambda: not service.engine.live and service.backend.in_flight == 0)
    assert service.engine.aborted == [("left", 0)]


async def test_a_deadline_ends_the_request(service: Service) -> None:
    service.engine.hold_at = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await decide(service, spec_of(predicate("x")), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not service.engine.live and service.backend.in_flight == 0)


async def test_abort_ends_the_request(service: Service) -> None:
    service.engine.hold_at = 0
    call = asyncio.ensure_future(decide(service, spec_of(predicate("x"), request_id="mine")))
    await until(lambda: bool(service.engine.live))
    await service.admin.Abort(admin_pb.AbortRequest(request_ids=["mine"]), timeout=20)
    refused = await refusal(call)
    assert refused.info.reason == "ABORTED"
    assert service.backend.in_flight == 0


async def test_many_questions_leave_room_for_others(open_service: OpenService) -> None:
    service = await open_service(max_num_seqs=4)
    service.engine.hold_at = 0
    long = asyncio.ensure_future(decide(service, spec_of(*[predicate("x")] * 400)))
    await until(lambda: bool(service.engine.live))
    short = [asyncio.ensure_future(decide(service, spec_of(predicate("y")))) for _ in range(3)]
    await until(lambda: len(service.engine.live) == 4)
    service.engine.resume.set()
    responses = await asyncio.gather(*short)
    assert [len(response.answers) for response in responses] == [1, 1, 1]
    assert len((await long).answers) == 400


async def test_salts_and_keys_separate_the_cache(service: Service) -> None:
    for salt in ("a", "b", "a"):
        spec = spec_of(choice("a", "b"), evidence=[image_part(PNG)], cache_salt=salt)
        await decide(service, spec)
    salts = [(r.cache_salt, r.images[0].key) for r in service.engine.requests]
    assert salts[0] == salts[2] != salts[1]
    assert salts[0][1] != salts[1][1]


async def test_the_model_announces_decisions(service: Service) -> None:
    assert "decisions" in service.backend.describe().features


async def test_a_request_is_measured(open_service: OpenService) -> None:
    service = await open_service(metrics_address="127.0.0.1:0")

    async def total(name: str, **labels: str) -> float:
        found = await asyncio.to_thread(scrape, service.target("metrics"))
        return sum(
            value
            for (series, pairs), value in found.series.items()
            if series == name and labels.items() <= dict(pairs).items()
        )

    duration, tokens = "gen_ai_server_request_duration_seconds_count", "qwenvl_prompt_tokens_total"
    before = await total(duration, gen_ai_operation_name="decisions"), await total(tokens)
    response = await decide(service, spec_of(choice("a", "b"), choice("a", "b")))
    await until(lambda: service.backend.in_flight == 0)
    assert await total(duration, gen_ai_operation_name="decisions") == before[0] + 1
    assert await total(tokens) == before[1] + response.usage.prompt_tokens
