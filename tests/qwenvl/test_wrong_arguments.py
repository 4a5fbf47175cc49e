"""Arguments of a wrong type: the error says in words of the client what is expected, and never repeats a file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenvl import (
    Client,
    arguments_of,
    assistant,
    choice,
    predicate,
    score,
    tool_result,
    user,
    video,
)
from qwenvl.decisions import decision_spec
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.options import ChatOptions
from qwenvl.specs import (
    abort_request,
    chat_spec,
    completion_spec,
    detokenize_request,
    tokenize_request,
)


TURN = {"role": "user", "content": "x"}
WRONG: tuple[Any, ...] = (5, 1.5, True, TURN, [TURN], [None], b"x", object())
OF_PROTOBUF = (
    *("bad argument type", "cannot be interpreted", "must assign", "not iterable"),
    *("Expected a message", "no attribute", "must be real number"),
)
ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "question": lambda value: chat_spec(value, None, {}),
    "images": lambda value: chat_spec("x", value, {}),
    "prompt": lambda value: completion_spec(value, None, {}),
    "text": lambda value: tokenize_request(value, "", parse_special=True, strings=False),
    "token_ids": lambda value: detokenize_request(value, "", skip_special_tokens=True),
    "part": user,
    "name": lambda value: user("x", name=value),
    "reasoning": lambda value: assistant("x", reasoning=value),
    "tool_calls": lambda value: assistant("x", tool_calls=value),
    "call": lambda value: tool_result(value, "x"),
    "call with arguments": arguments_of,
    "frames": video,
    "fps": lambda value: video([b"x"], fps=value),
    "questions": lambda value: decision_spec("x", value, None, {}),
    "instructions": predicate,
    "name of a question": lambda value: predicate("x", name=value),
    "options": lambda value: choice("x", value),
    "levels": lambda value: score("x", value),
    "request_ids": lambda value: abort_request([value]),
}


def of_option(name: str) -> Callable[[Any], Any]:
    def build(value: Any) -> Any:
        options: Any = {name: value}
        return chat_spec("x", None, options)

    return build


ARGUMENTS |= {name: of_option(name) for name in ChatOptions.__annotations__ if "tool" not in name}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_wrong_type_is_told_in_words_of_the_client(argument: str) -> None:
    said = []
    for value in WRONG:
        try:
            ARGUMENTS[argument](value)
        except (TypeError, ValueError) as error:
            said.append(str(error))
    assert len(said) >= 2
    assert max(map(len, said)) < 250
    assert not [text for text in said for words in OF_PROTOBUF if words in text]


def test_the_message_names_what_is_expected() -> None:
    for argument, value, message in (
        ("stop_token_ids", "12", "stop_token_ids is '12', but must be a list of integers"),
        ("stop", TURN, "stop is {'content': 'x', 'role': 'user'}, but must be a list of texts"),
        ("model", 5, "model is 5, but must be a text"),
        ("n", "2", "n is '2', but must be an integer"),
        ("temperature", "hot", "temperature is 'hot', but must be a number"),
        ("ignore_eos", "x", "ignore_eos is 'x', but must be True or False"),
        ("logit_bias", 5, "logit_bias is 5, but must be a mapping of token ids to numbers"),
        ("question", TURN, "a question is text or messages such as user('...'), not dict"),
        ("tool_calls", [5], "tool_calls is [5], but must be a list of messages"),
        (
            "call with arguments",
            "{}",
            "call is '{}', but must be one of the tool_calls of an answer",
        ),
        ("request_ids", 5, "request_ids is [5], but must be a list of texts"),
    ):
        with pytest.raises(TypeError) as caught:
            ARGUMENTS[argument](value)
        assert str(caught.value) == message


@pytest.mark.parametrize("size", [200, 3000, 100_000])
def test_base64_is_no_path_and_is_not_repeated(size: int) -> None:
    text = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * (size // 256 + 1)).decode()
    for images in (text, [text], text + "\n"):
        with pytest.raises(ValueError, match=r"a data: URL") as caught:
            chat_spec("x", images, {})
        assert len(str(caught.value)) < 200
        assert caught.value.__cause__ is None


def test_a_path_that_looks_like_base64_is_a_path(tmp_path: Path) -> None:
    (tmp_path / ("iVBORw0KGgo" + "A" * 60)).write_bytes(b"file")
    [found] = tmp_path.iterdir()
    assert chat_spec("x", str(found), {}).messages[0].parts[0].image == message_pb.Image(
        data=b"file"
    )


def test_ids_to_abort_come_one_by_one_or_in_lists() -> None:
    for given in (("a", "b"), (["a", "b"],), (("a",), "b"), ({"a": 1}.keys(), ["b"])):
        assert abort_request(given).request_ids == ["a", "b"]
    with Client("127.0.0.1:1") as client, pytest.raises(TypeError, match="request_ids"):
        client.abort(5)  # type: ignore[arg-type]
