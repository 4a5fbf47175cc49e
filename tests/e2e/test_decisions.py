"""Decisions of the demo model, as OpenAI's own client asks for them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import io
import itertools
import math
import random
import re
import time
from typing import Any

import openai
from openai.types import Decision
from PIL import Image
import pytest
import requests

from demo_training.decisions import CHOICE, PREDICATE, DecisionTrial, Verdict, decision_trials
from demo_training.evaluate import AT_ONCE
from demo_training.palette import COLOURS
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from tests.e2e.conftest import Served
from tests.support.bounds import CARD, assert_mostly_right
from tests.support.images import Placed, draw_scene


SAMPLE = 40
NAMES = list(COLOURS)
QUESTIONS: Any = [
    {"type": "predicate", "instructions": PREDICATE},
    {"type": "choice", "instructions": CHOICE, "choices": [{"value": name} for name in NAMES]},
]
NUMBERS = itertools.count()
SCENE = [Placed("red", "circle", 0.3, 0.3, 0.15), Placed("blue", "square", 0.7, 0.7, 0.17)]
MANY: Any = [
    *QUESTIONS,
    {"type": "predicate", "name": "statement", "instructions": "The square is blue."},
    {"type": "predicate", "instructions": "有红色的圆形吗？"},
    {
        "type": "score",
        "name": "count",
        "instructions": "How many shapes are there?",
        "levels": [{"label": label} for label in ("none", "one", "two", "three", "four")],
    },
    {
        "type": "choice",
        "instructions": "Is the square blue?",
        "choices": [{"value": False}, {"value": True}],
    },
    {
        "type": "choice",
        "instructions": "What shape is the red one?",
        "choices": [{"value": kind} for kind in ("star", "circle", "square")],
    },
]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def evidence(png: bytes, text: str = "") -> Any:
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    parts = [{"type": "input_image", "image_url": uri}]
    parts += [{"type": "input_text", "text": text}] if text else []
    return [{"role": "user", "content": parts}]


def scene() -> bytes:
    """An image that no other test sends: a few pixels differ, which nobody sees."""
    held = io.BytesIO()
    with Image.open(io.BytesIO(draw_scene(SCENE))) as image:
        image.paste(Image.frombytes("RGB", (8, 1), random.Random(next(NUMBERS)).randbytes(24)))
        image.save(held, "PNG")
    return held.getvalue()


def decide(client: openai.OpenAI, png: bytes, questions: Any, text: str = "") -> Decision:
    return client.decisions.create(model="qwen-vl", input=evidence(png, text), questions=questions)


def chances(answer: Any) -> list[float]:
    """The probabilities of an answer, whatever it is."""
    if answer.type == "predicate":
        return [answer.probability, 1 - answer.probability]
    return [entry.probability for entry in answer.probabilities]


def card_figures(question: str) -> tuple[float, float]:
    """The share of right answers and the Brier score that the card tells; as in `bounds.card_rates`."""
    row = re.compile(
        rf"^\| {re.escape(question)} \| (\d+) \| ([\d.]+) % \| ([\d.]+) \|$", re.MULTILINE
    )
    found = row.search(CARD.read_text(encoding="utf-8"))
    assert found is not None
    images = int(found[1])
    return (images * float(found[2]) / 100 + 1) / (images + 2), float(found[3])


def test_it_decides_as_often_rightly_as_the_card_tells(client: openai.OpenAI) -> None:
    trials = decision_trials(SAMPLE)

    def verdicts(trial: DecisionTrial) -> tuple[Verdict, Verdict]:
        there, colour = decide(client, trial.png, QUESTIONS).answers
        return (
            Verdict.of(chances(there), int(not trial.has_red_circle)),
            Verdict.of(chances(colour), NAMES.index(trial.square)),
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(verdicts, trials))
    assert {trial.has_red_circle for trial in trials} == {True, False}
    for question, column in zip((PREDICATE, CHOICE), zip(*found, strict=True), strict=True):
        rate, brier = card_figures(question)
        assert_mostly_right([verdict.right for verdict in column], rate)
        assert_mostly_right([1 - verdict.brier for verdict in column], 1 - brier)


def test_every_kind_of_question(client: openai.OpenAI) -> None:
    there, colour, statement, chinese, count, truth, kind = decide(client, scene(), MANY).answers
    assert there.type == statement.type == chinese.type == "predicate"
    assert min(there.probability, statement.probability, chinese.probability) > 0.5
    assert colour.type == truth.type == kind.type == "choice"
    assert (colour.choice, truth.choice, kind.choice) == ("blue", True, "circle")
    assert count.type == "score"
    assert round(count.score) == 2
    assert [entry.label for entry in count.probabilities][2] == "two"


def test_what_it_does_not_know_is_refused(client: openai.OpenAI) -> None:
    questions: Any = [
        {"type": "predicate", "name": "sky", "instructions": "Is the sky falling?"},
        *QUESTIONS,
    ]
    sky, there, _ = decide(client, scene(), questions).answers
    assert (sky.type, sky.name) == ("refusal", "sky")
    assert there.type == "predicate"


def test_the_answer_is_strictly_that_of_the_types(served: Served) -> None:
    body = {"model": "qwen-vl", "input": evidence(scene()), "questions": MANY}
    document = requests.post(f"{served.http}/v1/decisions", json=body, timeout=60).json()
    decision = Decision.model_validate(document, strict=True)
    assert not decision.model_extra
    assert decision.model == "qwen-vl-demo"
    for answer, question in zip(decision.answers, MANY, strict=True):
        assert (answer.type, answer.name) == (question["type"], question.get("name"))
        assert not answer.model_extra
        values = chances(answer)
        assert min(values) >= 0
        assert math.fsum(values) == pytest.approx(1, abs=1e-6)
    usage = decision.usage
    assert usage.output_tokens == 0
    assert usage.input_tokens == usage.total_tokens > 0


def test_one_image_is_encoded_once_for_all_questions(served: Served, client: openai.OpenAI) -> None:
    before = told_in_full(served)
    decide(client, scene(), MANY * 10, text="Parcel 7, camera B")
    after = told_in_full(served)
    assert after.encoder_cache_queries > before.encoder_cache_queries
    encoded = after.encoder_cache_queries - after.encoder_cache_hits
    assert encoded - (before.encoder_cache_queries - before.encoder_cache_hits) == 1


def told_in_full(served: Served) -> admin_pb.Load:
    """The load with the last counters of what was asked before, which the engine tells four times a second."""
    load = served.wait_idle().load
    while True:
        time.sleep(0.5)
        last, load = load, served.wait_idle().load
        if load == last:
            return load


def test_the_company_of_a_question_does_not_matter(client: openai.OpenAI) -> None:
    """In float32; that of other questions, and of other requests at the same time."""
    png = scene()
    alone = [decide(client, png, [question]).answers[0] for question in MANY]
    with ThreadPoolExecutor(4) as pool:
        crowd = list(pool.map(lambda index: decide(client, png, MANY[index:] * 3), range(4)))
    for index, decision in enumerate(crowd):
        for answer, other in zip(decision.answers, alone[index:] * 3, strict=True):
            assert chances(answer) == pytest.approx(chances(other), abs=1e-4)


def test_the_input_of_an_earlier_request_is_cached(client: openai.OpenAI) -> None:
    shown = evidence(scene(), "Parcel 7, camera B")

    def cached(key: str) -> int:
        decision = client.decisions.create(
            model="qwen-vl",
            input=shown,
            questions=QUESTIONS,
            prompt_cache_key=key,
        )
        return decision.usage.input_tokens_details.cached_tokens

    assert [cached("a"), cached("b")] == [0, 0]
    assert cached("a") > 0


def test_probabilities_are_those_of_the_chat(client: openai.OpenAI) -> None:
    """The demo's questions are written as in a chat, whose first token has the same distribution."""
    png = scene()
    uri = evidence(png)[0]["content"][0]["image_url"]
    content: Any = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "text", "text": PREDICATE},
    ]
    chat = client.chat.completions.create(
        model="qwen-vl",
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=1,
        logprobs=True,
        top_logprobs=20,
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    [entry] = logprobs.content
    masses = {top.token: math.exp(top.logprob) for top in entry.top_logprobs}
    [answer] = decide(client, png, QUESTIONS[:1]).answers
    assert answer.type == "predicate"
    assert masses["Yes"] > 0.5
    wanted = masses["Yes"] / (masses["Yes"] + masses["No"])
    assert answer.probability == pytest.approx(wanted, abs=1e-2)
