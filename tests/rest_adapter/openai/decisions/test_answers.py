"""Answers of /v1/decisions as OpenAI's own client reads them, and nothing but what its types have."""

from __future__ import annotations

from typing import Any

import openai
from openai.types import Decision
import pytest

from tests.rest_adapter.conftest import Adapter, wait_until


QUESTIONS: Any = [
    {"type": "predicate", "name": "torn", "instructions": "The wrapping is torn."},
    {
        "type": "choice",
        "instructions": "Which?",
        "choices": [
            {"value": "true"},
            {"value": False, "description": "it is not"},
            {"value": True},
        ],
    },
    {
        "type": "score",
        "name": "",
        "instructions": [{"type": "input_text", "text": "How dented is it?"}],
        "levels": [{"label": "not"}, {"label": "a little"}, {"label": "badly"}],
    },
    {"type": "predicate", "name": "torn", "instructions": "refuse"},
]


def without_extras(value: Any) -> None:
    """Checks that a document has no field which its type lacks."""
    assert not value.model_extra, value
    for _, inner in value:
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, openai.BaseModel):
                without_extras(item)


def test_the_shape(adapter: Adapter) -> None:
    assert adapter.decide(questions=QUESTIONS).json() == {
        "model": "demo",
        "answers": [
            {"type": "predicate", "name": "torn", "probability": 0.75},
            {
                "type": "choice",
                "name": None,
                "choice": True,
                "confidence": 0.25,
                "probabilities": [
                    {"value": "true", "probability": 0.25},
                    {"value": False, "probability": 0.25},
                    {"value": True, "probability": 0.5},
                ],
            },
            {
                "type": "score",
                "name": "",
                "score": 1.25,
                "confidence": 0.125,
                "probabilities": [
                    {"value": 0, "label": "not", "probability": 0.25},
                    {"value": 1, "label": "a little", "probability": 0.25},
                    {"value": 2, "label": "badly", "probability": 0.5},
                ],
            },
            {"type": "refusal", "name": "torn"},
        ],
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 8},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 12,
        },
    }


def test_the_client_reads_it_strictly(adapter: Adapter, client: openai.OpenAI) -> None:
    decision = client.decisions.create(
        model="qwen-vl", input="Parcel 7", questions=QUESTIONS, prompt_cache_key="k"
    )
    assert [answer.type for answer in decision.answers] == [
        "predicate",
        "choice",
        "score",
        "refusal",
    ]
    document = adapter.decide(questions=QUESTIONS).json()
    without_extras(Decision.model_validate(document, strict=True))
    [_, answer, _, _] = decision.answers
    assert answer.type == "choice"
    assert answer.choice is True


async def test_the_async_client(adapter: Adapter) -> None:
    async with openai.AsyncOpenAI(base_url=f"{adapter.url}/v1", api_key="none") as client:
        decision = await client.decisions.create(
            model="demo", input="Parcel 7", questions=QUESTIONS[:1]
        )
    assert decision.answers[0].name == "torn"


def test_diagnostics_on_request(adapter: Adapter) -> None:
    document = adapter.decide(questions=QUESTIONS, diagnostics=True, prompt_format=2).json()
    assert document["prompt_format"] == 2
    assert {(a["label_mass"], a["top_is_label"]) for a in document["answers"]} == {(0.9, True)}


def test_a_client_that_leaves_ends_the_call(adapter: Adapter) -> None:
    with (
        openai.OpenAI(base_url=f"{adapter.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.decisions.create(model="demo", input="hang", questions=QUESTIONS[:1], timeout=2)
    wait_until(lambda: adapter.seen.cancelled == 1)
    assert adapter.seen.running == 0


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("MODEL_NOT_FOUND", openai.NotFoundError),
        ("CONTEXT_LENGTH_EXCEEDED", openai.BadRequestError),
        ("QUEUE_FULL", openai.RateLimitError),
        ("INTERNAL", openai.InternalServerError),
    ],
)
def test_error_classes(
    client: openai.OpenAI, reason: str, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error):
        client.decisions.create(model="demo", input=f"fail {reason}", questions=QUESTIONS[:1])
