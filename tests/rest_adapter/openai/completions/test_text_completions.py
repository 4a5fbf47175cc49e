"""/v1/completions as OpenAI's own client reads it: prompts of all kinds, echo, legacy log probabilities, streams."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
import pytest
import requests

from rest_adapter import reply
from rest_adapter.body import RequestBody
from rest_adapter.openai.completions.translate import MAX_COMMON_BYTES
from tests.rest_adapter.conftest import Adapter, wait_until
from tests.rest_adapter.fake_service import CREATED


PNG = b"\x89PNG\r\n\x1a\n not really"


def chunks_of(response: requests.Response) -> list[dict]:
    events = [event for event in response.text.split("\n\n") if event.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def merged(chunks: list[dict], index: int) -> dict:
    """The chunks of one choice as the choice of a whole answer."""
    whole: dict = {"index": index, "text": "", "logprobs": None}
    for choice in (c for chunk in chunks for c in chunk["choices"] if c["index"] == index):
        assert "finish_reason" not in whole, "a chunk behind the last one"
        whole["text"] += choice["text"]
        for name, items in (choice["logprobs"] or {}).items():
            lists = whole["logprobs"] = whole["logprobs"] or {}
            lists[name] = lists.get(name, []) + items
        if "token_ids" in choice:
            whole["token_ids"] = whole.get("token_ids", []) + choice["token_ids"]
        of_prompt = ("prompt_token_ids", "prompt_logprobs", "effective_max_tokens")
        names = (*of_prompt, "stop_reason", "grounding")
        whole |= {name: choice[name] for name in names if name in choice}
        if choice["finish_reason"]:
            whole["finish_reason"] = choice["finish_reason"]
    return whole


def test_whole_answer(adapter: Adapter, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="hé!")
    assert answer.choices[0].text == "hé!"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert (answer.model, answer.created, answer.object) == ("demo", CREATED, "text_completion")
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6
    [spec] = adapter.seen.completion_specs
    assert spec.text == "hé!"
    assert not spec.sampling.HasField("max_tokens")  # the service knows the operator's default
    assert not spec.logprobs.HasField("top_logprobs")


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ([104, 105], ["hi"]),
        (["a", "bc"], ["a", "bc"]),
        ([[104, 105], [33]], ["hi", "!"]),
        (["x"], ["x"]),
        ([[120]], ["x"]),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_prompts_of_all_kinds(
    client: openai.OpenAI, prompt: Any, texts: list[str], stream: bool
) -> None:
    wanted = [text * times for text in texts for times in (1, 2)]
    if not stream:
        answer = client.completions.create(model="demo", prompt=prompt, n=2)
        assert [choice.text for choice in answer.choices] == wanted
        assert [choice.index for choice in answer.choices] == list(range(len(wanted)))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len("".join(texts))
        assert answer.usage.completion_tokens == len("".join(wanted))
        return
    got = [""] * len(wanted)
    for chunk in client.completions.create(model="demo", prompt=prompt, n=2, stream=True):
        for choice in chunk.choices:
            got[choice.index] += choice.text
    assert got == wanted


def test_several_prompts_have_ids_of_their_own(adapter: Adapter) -> None:
    answer = adapter.complete(["a", "b"], request_id="mine").json()
    assert answer["id"] == "cmpl-mine"
    assert sorted(spec.request_id for spec in adapter.seen.completion_specs) == ["mine-0", "mine-1"]
    adapter.complete("a", request_id="mine")
    assert adapter.seen.completion_specs[-1].request_id == "mine"


@pytest.mark.parametrize("prompt", ["héx", [104, 233, 120]])
def test_echo_with_log_probabilities(client: openai.OpenAI, prompt: Any) -> None:
    answer = client.completions.create(model="demo", prompt=prompt, echo=True, logprobs=2)
    [choice] = answer.choices
    assert choice.text == "héxhéx"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list("héxhéx")
    assert choice.logprobs.text_offset == list(range(6))
    assert choice.logprobs.token_logprobs == [None, *[-0.5] * 5]
    top_logprobs: Any = choice.logprobs.top_logprobs
    assert top_logprobs[0] is None
    assert top_logprobs[1] == {"é": -0.5, "~": -9999.0}


@pytest.mark.parametrize("stream", [True, False])
def test_an_echo_with_no_token_after_it(adapter: Adapter, stream: bool) -> None:
    """As tools that score texts ask."""
    fields = {"echo": True, "max_tokens": 0, "logprobs": 1, "return_token_ids": True, "n": 2}
    response = adapter.complete(["hé", "x"], stream=stream, **fields)
    choices = (
        [merged(chunks_of(response), index) for index in range(4)]
        if stream
        else response.json()["choices"]
    )
    assert [choice["text"] for choice in choices] == ["hé", "hé", "x", "x"]
    assert choices[0]["logprobs"]["tokens"] == ["h", "é"]
    assert choices[0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    assert [choice.get("token_ids", []) for choice in choices] == [[]] * 4
    assert choices[0]["effective_max_tokens"] == choices[2]["effective_max_tokens"] == 0
    if not stream:
        assert response.json()["usage"]["completion_tokens"] == 0
        assert response.json()["usage"]["total_tokens"] == 3
    assert [spec.sampling.max_tokens for spec in adapter.seen.completion_specs] == [1, 1]


def test_no_rivals_but_the_token_itself(adapter: Adapter) -> None:
    logprobs = adapter.complete("ab", logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"a": -0.5}, {"b": -0.5}]


def test_token_ids_and_prompt_logprobs_stand_in_the_choice(adapter: Adapter) -> None:
    answer = adapter.complete("ab", return_token_ids=True, prompt_logprobs=1, n=2).json()
    first, second = answer["choices"]
    assert first["prompt_token_ids"] == first["token_ids"] == [97, 98]
    expected = [None, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]
    assert first["prompt_logprobs"] == expected
    assert second["token_ids"] == [97, 98, 97, 98]
    assert not {"prompt_token_ids", "prompt_logprobs"} & second.keys()
    assert "prompt_logprobs" not in answer
    assert not {"token_ids", "prompt_logprobs"} & adapter.complete("ab").json()["choices"][0].keys()


def test_boxes_stand_in_the_choice(adapter: Adapter) -> None:
    [choice] = adapter.complete("ab", grounding=True).json()["choices"]
    assert choice["grounding"] == [
        {"label": "猫", "box": [1.0, 2.25, 66.8, 100.0], "image_index": 1}
    ]


def test_echo_does_not_widen_the_prompt_logprobs(adapter: Adapter) -> None:
    choice = adapter.complete("ab", echo=True, logprobs=2, prompt_logprobs=0).json()["choices"][0]
    assert [list(e) for e in choice["prompt_logprobs"] if e] == [["98"]]
    assert len(choice["logprobs"]["top_logprobs"][1]) == 2
    assert adapter.seen.completion_specs[-1].logprobs.prompt_logprobs == 2


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": 1},
        {"return_token_ids": True, "prompt_logprobs": 2},
        {"logprobs": 0, "prompt_logprobs": 1, "return_token_ids": True},
        {"grounding": True},
    ],
)
def test_a_stream_says_what_a_whole_answer_says(adapter: Adapter, echo: bool, fields: dict) -> None:
    arguments = {"prompt": ["hé!", "x"], "n": 2, "echo": echo} | fields
    whole = adapter.complete(**arguments).json()
    streamed = adapter.complete(**arguments, stream=True, stream_options={"include_usage": True})
    chunks = chunks_of(streamed)
    last = chunks.pop()
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert [merged(chunks, index) for index in range(4)] == whole["choices"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1


def test_no_usage_unless_asked_for(adapter: Adapter) -> None:
    assert not any("usage" in chunk for chunk in chunks_of(adapter.complete("a", stream=True)))


def test_settings_reach_the_service(adapter: Adapter) -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    adapter.complete(
        "x",
        images=[url, {"url": "https://example.com/x.png", "detail": "low"}],
        max_tokens=3,
        temperature=0.5,
        stop="\n",
        top_k=4,
        logit_bias={"5": 1.5},
        cache_salt="s",
        priority=2,
        skip_special_tokens=False,
        grounding=True,
        mm_processor_kwargs={"max_pixels": 9},
        user="me",
        best_of=1,
        suffix="",
    )
    [spec] = adapter.seen.completion_specs
    assert spec.images[0].data == PNG
    assert (spec.images[1].uri, spec.images[1].detail) == ("https://example.com/x.png", 2)
    assert (spec.sampling.max_tokens, spec.sampling.temperature, spec.sampling.top_k) == (3, 0.5, 4)
    assert spec.sampling.logit_bias[5] == 1.5
    assert list(spec.stop.strings) == ["\n"]
    assert (spec.cache_salt, spec.priority, spec.media.max_pixels) == ("s", 2, 9)
    assert spec.response.keep_special_tokens
    assert spec.response.grounding


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt"),
    "empty list": ({"prompt": []}, "prompt"),
    "mixed": ({"prompt": ["a", 1]}, "prompt[1]"),
    "number": ({"prompt": 5}, "prompt"),
    "too many": ({"prompt": ["a"] * 65}, "prompt"),
    "suffix": ({"suffix": "end"}, "suffix"),
    "best_of": ({"best_of": 2}, "best_of"),
    "boolean logprobs": ({"logprobs": True}, "logprobs"),
    "images of two prompts": ({"prompt": ["a", "b"], "images": ["http://x/"]}, "images"),
    "broken image": ({"images": ["data:,"]}, "images[0]"),
    "unsupported": ({"tools": [{"type": "function"}]}, "tools"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(adapter: Adapter, case: str) -> None:
    fields, param = REFUSED[case]
    response = adapter.complete(**({"prompt": "x"} | fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert not adapter.seen.completion_specs


def test_images_together_are_bounded(adapter: Adapter) -> None:
    url = "data:image/png;base64," + base64.b64encode(bytes(700_000)).decode()
    assert adapter.complete("x", images=[url, url]).status_code == 413


LONG = "A" * (MAX_COMMON_BYTES + 1)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions/render"])
@pytest.mark.parametrize(
    "large",
    [
        {"cache_salt": LONG},
        {"model": LONG},
        {"guided_regex": LONG},
        {"stop": ["x", LONG]},
        {"bad_words": [LONG]},
        {"structured_outputs": {"grammar": LONG}},
        {"allowed_token_ids": [2**31 - 1] * 250_000},
    ],
    ids=lambda large: next(iter(large)),
)
def test_what_each_prompt_gets_a_copy_of_is_small(
    adapter: Adapter, path: str, large: dict[str, Any]
) -> None:
    body = {"model": "demo", "prompt": ["a"] * 64} | large
    answer = requests.post(adapter.url + path, json=body, timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (413, *large)
    assert str(MAX_COMMON_BYTES) in error["message"]
    assert not adapter.seen.calls
    alone = requests.post(adapter.url + path, json=body | {"prompt": "a"}, timeout=30)
    assert alone.status_code != 413


def test_the_copies_count_as_memory_of_the_request(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(RequestBody, "take", lambda _, count: taken.append(count))
    assert adapter.complete(["a"] * 64, cache_salt="A" * 100_000).status_code == 200
    assert max(taken) > 63 * 100_000


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": ["a" * 2000] * 4, "logprobs": 2, "echo": True}),
        ("/v1/completions/render", {"prompt": ["a" * 100_000] * 4}),
        ("/detokenize", {"tokens": [[97] * 9000] * 4}),
    ],
)
def test_large_answers_count_one_by_one(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any]
) -> None:
    """Each of them has its own bound only."""
    taken: list[int] = []
    monkeypatch.setattr(reply, "FREE_BYTES", 1000)
    monkeypatch.setattr(RequestBody, "take_for_answer", lambda _, count: taken.append(count))
    response = requests.post(adapter.url + path, json={"model": "demo"} | fields, timeout=30)
    assert response.status_code == 200
    count = len(fields.get("prompt") or fields["tokens"])
    assert len(taken) == count + 1
    assert all(each > 4 * 900 for each in taken[:count])
    assert taken[-1] == len(response.content)


@pytest.mark.parametrize("stream", [True, False])
def test_errors_of_the_service(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x", stream=stream)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model="demo", prompt=["fine", "fail INVALID_ARGUMENT"], stream=stream
        )
    assert caught.value.param == "temperature"


def test_one_prompt_that_fails_ends_the_others(adapter: Adapter) -> None:
    for stream in (True, False):
        response = adapter.complete(["hang", "fail INVALID_ARGUMENT"], stream=stream)
        assert response.status_code == 400
    wait_until(lambda: adapter.seen.running == 0)


def test_a_stream_that_fails_ends_with_the_error(adapter: Adapter) -> None:
    response = adapter.complete(["ab", "fail-after 3"], stream=True)
    events = [event for event in response.text.split("\n\n") if event.startswith("data: ")]
    assert set(json.loads(events[-1].removeprefix("data: "))) == {"error"}
    assert "[DONE]" not in response.text


def test_an_aborted_answer_is_an_error(adapter: Adapter) -> None:
    assert adapter.complete("abort").json()["error"]
    assert '"error"' in adapter.complete("abort", stream=True).text


def test_client_that_leaves_a_stream_ends_the_work(adapter: Adapter) -> None:
    body = {"model": "demo", "prompt": ["a", "hang", "hang"], "stream": True}
    with requests.post(
        f"{adapter.url}/v1/completions", json=body, stream=True, timeout=30
    ) as response:
        lines = response.iter_lines()  # held: an iterator that is collected closes the response
        next(lines)
        wait_until(lambda: adapter.seen.running == 2)
    wait_until(lambda: adapter.seen.cancelled == 2)
