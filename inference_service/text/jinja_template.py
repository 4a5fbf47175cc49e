"""Renders conversations with the model's Jinja template, equal to transformers' `apply_chat_template`.

Templates come with the model, never with a request, and run in a sandbox (CVE-2026-5760). Rendering takes time:
callers run it outside the event loop (CVE-2025-62426).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
import datetime as dt
import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference_service.domain import ChatMessage, ImagePart, Part, Role, TextPart, Tool
from inference_service.errors import InvalidArgumentError
from inference_service.text.guard import CONTINUE_TAG
from inference_service.text.limits import MAX_CHARACTERS, too_many_characters
from inference_service.text.model_files import find_chat_template, read_json
from inference_service.text.tool_text import openai_call, openai_tool


_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_Content = str | list[dict[str, str]]
_MAX_QUOTED = 200


class JinjaTemplate:
    """A chat template: renders messages to the prompt format of the model."""

    def __init__(self, source: str, named_tokens: dict[str, str] | None = None) -> None:
        """Compiles a template.

        Args:
            source: Jinja source.
            named_tokens: Tokens that templates may use, such as `eos_token`.

        Raises:
            ValueError: The template is malformed.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template is malformed in line {error.lineno}: {error.message}"
            ) from error
        self._named_tokens = named_tokens or {}

    @classmethod
    def from_dir(cls, model_dir: Path) -> JinjaTemplate:
        """Reads the template of a model's directory.

        Raises:
            ValueError: None of them has a template, or it is malformed.
            OSError: A file cannot be read.
        """
        config = read_json(model_dir / "tokenizer_config.json")
        named = {
            name: text
            for name in _NAMED_TOKENS
            if (text := _token_text(config.get(name))) is not None
        }
        template = find_chat_template(model_dir)
        if template is None:
            raise ValueError(f"{model_dir} has no chat template")
        return cls(template, named)

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        enable_thinking: bool | None = None,
        reasoning_effort: str = "",
        tools: Sequence[Tool] = (),
        in_parts: Container[Role] = (),
        quote_refusal: bool = False,
    ) -> str:
        """The prompt as text, one placeholder for every image.

        Args:
            messages: The conversation.
            add_generation_prompt: End the prompt where the answer begins.
            continue_final_message: End the prompt inside the last message, which the model continues.
            enable_thinking: For templates that support it; None = the template's default.
            reasoning_effort: The same.
            tools: Functions that the model may call.
            in_parts: Roles whose text is passed as a list of parts, also where it is text alone.
            quote_refusal: The error quotes the template's refusal or failure, which may quote the messages.

        Raises:
            InvalidArgumentError: The template refuses the conversation, or there is nothing to continue.
            ContextLengthError: The prompt has more than `MAX_CHARACTERS` characters.
        """
        variables = [_variables(message, message.role in in_parts) for message in messages]
        if continue_final_message:
            if add_generation_prompt:
                raise InvalidArgumentError(
                    "add_generation_prompt and continue_final_message cannot both be set.",
                    field="spec.template",
                )
            _tag_final_text(variables)
        extra: dict[str, Any] = {}
        if enable_thinking is not None:
            extra["enable_thinking"] = enable_thinking
        if reasoning_effort:
            extra["reasoning_effort"] = reasoning_effort
        rendered = self._run(
            quote_refusal,
            messages=variables,
            tools=list(map(openai_tool, tools)) or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._named_tokens,
            **extra,
        )
        return _cut_at_tag(rendered) if continue_final_message else rendered

    def _run(self, quote_refusal: bool, **variables: Any) -> str:
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(**variables):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_CHARACTERS:
                    raise too_many_characters("prompt", "spec.messages")
        except _RefusedError as error:
            reason = "check the roles and their order"
            if quote_refusal:
                reason = f"it says {' '.join(str(error).split())[:_MAX_QUOTED]!r}"
            raise _unsuitable(reason) from None
        except (
            *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError),
            RecursionError,
        ) as error:
            # An operation on a missing or unsuitable value, or a macro that calls itself.
            reason = "check the roles and their order"
            if quote_refusal:
                reason = f"it fails with {' '.join(str(error).split())[:_MAX_QUOTED]!r}"
            raise _unsuitable(reason) from None
        return "".join(pieces)


class _RefusedError(jinja2.TemplateError):
    """The template's own `raise_exception`."""


def _unsuitable(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"The model's chat template does not support this conversation; {reason}.",
        field="spec.messages",
    )


def _environment() -> ImmutableSandboxedEnvironment:
    """The same options, filters and globals for templates as in transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without attributes that could escape the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError("a namespace attribute begins with an underscore")
        super().__setitem__(name, value)


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the model's text for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - declared so in the base class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The body, without the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Like Jinja's filter, but does not escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _strftime_now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)


def _variables(message: ChatMessage, in_parts: bool) -> dict[str, Any]:
    variables: dict[str, Any] = {
        "role": message.role.value,
        "content": _content(message, in_parts),
    }
    if message.name:
        variables["name"] = message.name
    if message.reasoning:
        variables["reasoning_content"] = message.reasoning
    if message.tool_calls:
        variables["tool_calls"] = list(map(openai_call, message.tool_calls))
    return variables


def _content(message: ChatMessage, in_parts: bool) -> _Content:
    """Text alone as a string, unless in parts; else the parts in order."""
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    if len(texts) == len(message.parts) and not in_parts:
        return "".join(texts)
    return [_part(part) for part in message.parts]


def _part(part: Part) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image"} if isinstance(part, ImagePart) else {"type": "video"}


def _tag_final_text(variables: list[dict[str, Any]]) -> None:
    """Marks the end of the last text of the last message."""
    content = variables[-1]["content"] if variables else []
    if isinstance(content, str):
        variables[-1]["content"] = content + CONTINUE_TAG
        return
    for part in reversed(content):
        if "text" in part:
            part["text"] += CONTINUE_TAG
            return
    raise InvalidArgumentError("The last message has no text to continue.", field="spec.messages")


def _cut_at_tag(rendered: str) -> str:
    """The text before the tag, also trimmed if the template trimmed the tag's space."""
    end = rendered.rfind(CONTINUE_TAG.strip())
    if end < 0:
        raise InvalidArgumentError(
            "The model's chat template cannot continue this message.", field="spec.messages"
        )
    before = rendered[:end]
    return before if rendered.startswith(CONTINUE_TAG, end) else before.rstrip()


def _token_text(value: Any) -> str | None:
    """A token of tokenizer_config.json: its text, or an object with its text."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
