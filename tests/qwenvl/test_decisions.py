"""`decide` of both clients, and that `FakeServer` decides as the real service does."""

from __future__ import annotations

from typing import Any

import pytest

from qwenvl import AsyncClient, Client, Error, choice, image, predicate, score, user
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.testing import FakeServer
from tests.grpc_api.conftest import OpenService
from tests.qwenvl.both import CLIENTS, EitherClient, call, close, in_thread
from tests.support.images import draw


PNG = draw("red", "circle").png
QUESTIONS = [
    predicate("It is torn.", name="torn"),
    choice("Which?", {"red": "", "blue": "any blue", True: "unknown"}),
    score(["How ", image(PNG), " dented?"], ["not", "a little", "badly"], name=""),
]


def deciding(question: decision_pb.DecisionQuestion) -> list[float] | None:
    if question.HasField("predicate"):
        return None if question.instructions[0].text == "?" else [0.25, 0.75]
    return [0.125, 0.5, 0.375]


@pytest.mark.parametrize("kind", CLIENTS)
async def test_answers(kind: type[Client | AsyncClient]) -> None:
    with FakeServer(deciding=deciding) as server:
        client: EitherClient = kind(server.target)
        answers = await call(
            client.decide,
            "Parcel 7",
            [*QUESTIONS, predicate("?")],
            images=PNG,
            system="Be strict.",
            diagnostics=True,
            prompt_format=2,
            cache_salt="s",
            max_pixels=4096,
            oversized="reject",
        )
        await close(client)
    torn, colour, dent, unclear = answers
    assert (torn.name, torn.probability, torn.confidence, torn.choice) == ("torn", 0.25, None, None)
    assert (colour.name, colour.choice, colour.probability) == (None, "blue", None)
    assert colour.confidence == pytest.approx(0.25)
    assert colour.probabilities == [("red", 0.125), ("blue", 0.5), (True, 0.375)]
    assert (dent.name, dent.choice, dent.score) == ("", "a little", 1.25)
    assert dent.confidence == pytest.approx(0.25)
    assert dent.probabilities[2] == ("badly", 0.375)
    assert (unclear.refused, unclear.probability, unclear.probabilities) == (True, None, [])
    assert torn.answer.label_mass == 1
    assert len(answers) == 4
    assert answers[1:][0] is colour
    assert answers.usage.total_tokens == answers.usage.prompt_tokens > 0
    [spec] = server.decision_requests
    assert [part.WhichOneof("kind") for part in spec.messages[1].parts] == ["image", "text"]
    assert (spec.diagnostics, spec.prompt_format, spec.cache_salt) == (True, 2, "s")
    assert spec.media.max_pixels == 4096
    assert spec.media.oversized == message_pb.OVERSIZED_IMAGE_REJECT
    option = spec.questions[1].choice.options[1]
    assert (option.text, option.description) == ("blue", "any blue")
    assert [part.text for part in spec.questions[2].instructions] == ["How ", "", " dented?"]


@pytest.mark.parametrize(
    ("questions", "options", "words"),
    [
        (["x"], {}, "predicate"),
        ([], {"diagnostic": True}, "did you mean 'diagnostics'"),
        ([], {"prompt_format": "2"}, "prompt_format"),
        ([], {"model": 1}, "model"),
    ],
)
def test_wrong_arguments(questions: Any, options: Any, words: str) -> None:
    with FakeServer() as server, Client(server.target) as client:
        with pytest.raises(TypeError, match=words):
            client.decide("x", questions, **options)
        assert not server.decision_requests


def test_wrong_options() -> None:
    wrong: Any
    for wrong in ("ab", [1, 2], [None]):
        with pytest.raises(TypeError):
            choice("Which?", wrong)


REQUESTS: dict[str, tuple[Any, list[decision_pb.DecisionQuestion], dict[str, Any]]] = {
    "all kinds": ("Parcel 7", QUESTIONS, {"diagnostics": True}),
    "other name": ("x", [predicate("y")], {"model": "echo-too"}),
    "own id": ("x", [predicate("y")], {"request_id": "mine"}),
    "plain": ("x", [predicate("y")], {"prompt_format": 2}),
    "no messages": ([], [predicate("y")], {}),
    "no questions": ("x", [], {}),
    "too many": ("x", [predicate("y")] * 401, {}),
    "no kind": ("x", [decision_pb.DecisionQuestion(instructions=user("y").parts)], {}),
    "blank": ("x", [predicate("y"), predicate(" ")], {}),
    "one option": ("x", [choice("y", ["a"])], {}),
    "no level": ("x", [score("y", [])], {}),
    "unknown name": ("x", [predicate("y")], {"model": "nobody"}),
}


def outcome(client: Client, name: str) -> Any:
    """What a caller sees, without the figures of a model."""
    evidence, questions, options = REQUESTS[name]
    try:
        answers = client.decide(evidence, questions, **options)
    except Error as error:
        return type(error), error.code, error.reason, error.field
    response = answers.response
    usage = response.usage
    return (
        [(answer.name, answer.answer.WhichOneof("kind")) for answer in answers],
        [len(answer.probabilities) for answer in answers],
        [answer.answer.HasField("label_mass") for answer in answers],
        (response.model, response.prompt_format, usage.prompt_tokens == usage.total_tokens),
        response.request_id == options.get("request_id", response.request_id),
    )


async def test_the_fake_service_decides_as_the_real_one(open_service: OpenService) -> None:
    service = await open_service()

    def compare() -> None:
        with (
            FakeServer(models=["echo", "echo-too"]) as fake,
            Client(fake.target) as told,
            Client(service.target()) as asked,
        ):
            for name in REQUESTS:
                assert outcome(told, name) == outcome(asked, name), name

    await in_thread(compare)


def test_it_fails_and_waits_as_told() -> None:
    with FakeServer() as server, Client(server.target) as client:
        server.fail("QUEUE_FULL")
        with pytest.raises(Error) as caught:
            client.decide("x", [predicate("y")])
        assert caught.value.reason == "QUEUE_FULL"
        [answer] = client.decide("x", [choice("y", ["a", "b"])])
        assert (answer.choice, answer.confidence) == ("a", 1)


def test_wrong_probabilities_of_a_test_are_told() -> None:
    with (
        FakeServer(deciding=lambda _: [0.5]) as server,
        Client(server.target) as client,
        pytest.raises(Error, match=r"decides \[0.5\] for 2 options"),
    ):
        client.decide("x", [predicate("y")])
