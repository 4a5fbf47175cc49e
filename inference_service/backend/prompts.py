"""Turns a request and its prepared media into the prompt for the engine: renders and tokenises its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from inference_service.backend.admission import AdmittedRequest
from inference_service.domain import (
    ChatRequest,
    ImageInfo,
    Request,
    TextCompletionRequest,
    TextPart,
    TokenUsage,
)
from inference_service.errors import ContextLengthError
from inference_service.fair_threads import FairThreads
from inference_service.media.prepare import PreparedMedia
from inference_service.process_memory import freed
from inference_service.text.bounds import TokenBound
from inference_service.text.prompt import Prompt, PromptBuilder
from inference_service.text.tokenizer import Tokenizer


_LONG_CHARACTERS: Final = 2**15
_CHARACTERS_PER_TOKEN: Final = 4
"""A text with fewer is tokenised, so that its refusal tells how long it is."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """A prompt for the engine.

    Attributes:
        prompt: Token ids and the positions of images.
        pixels: RGB uint8 of the images, in order; empty once the engine has them.
        infos: Sizes and token count of each image, in order.
        usage: Tokens of the prompt.
    """

    prompt: Prompt
    pixels: list[bytes | memoryview]
    infos: tuple[ImageInfo, ...]
    usage: TokenUsage


class Prompts(Protocol):
    """Makes prompts; documented at `PromptWorkers`."""

    def close(self) -> None:
        """Ends its work."""

    async def refuse_too_long(self, request: Request, max_tokens: int, caller: str) -> None:
        """Refuses a request whose text cannot fit the context window, before anything of it is computed."""

    async def prepare(
        self, request: Request, media: PreparedMedia, admitted: AdmittedRequest
    ) -> PreparedPrompt:
        """Builds the prompt of an admitted request; an abort ends what may take long."""

    async def run(self, characters: int, caller: str, work: Callable[[], T]) -> T:
        """Runs a caller's work on so many characters of text in a thread."""

    def min_tokens(self, text: str) -> int:
        """A number of tokens that a text of a conversation has at least, found without tokenising it."""


class TextWorkers:
    """Works on text in threads: short texts do not wait for long ones, and callers take turns.

    Args:
        tokenizer: The model's, to bound the tokens of a text; None = no text is refused before it is tokenised.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        # What users write in a chat has no special tokens; the text of a completion has.
        self._bounds: dict[type[Request], TokenBound] = {}
        if tokenizer is not None:
            self._bounds[ChatRequest] = TokenBound(tokenizer.texts(special=False))
            self._bounds[TextCompletionRequest] = TokenBound(tokenizer.texts(special=True))
        self._short = FairThreads(2, "short-prompts")
        self._long = FairThreads(1, "long-prompts")

    def close(self) -> None:
        """Ends the threads; prompts that wait are dropped."""
        for threads in (self._short, self._long):
            threads.close()

    async def refuse_too_long(self, request: Request, max_tokens: int, caller: str) -> None:
        """Refuses a request whose text cannot fit the context window, before anything of it is computed.

        Raises:
            ContextLengthError: It cannot.
        """
        text, token_ids = _text_of(request)
        min_tokens = len(token_ids)
        bound = self._bounds.get(type(request))
        if bound is not None and len(text) > _CHARACTERS_PER_TOKEN * max_tokens:
            min_tokens = await self.run(len(text), caller, lambda: bound.min_tokens(text))
        if min_tokens >= max_tokens:
            raise ContextLengthError(
                f"This model's maximum context length is {max_tokens} tokens. However, your messages have at least"
                f" {min_tokens} tokens. Please reduce the length of the messages.",
                field=request.prompt_field,
                metadata={
                    "min_prompt_tokens": str(min_tokens),
                    "max_context_tokens": str(max_tokens),
                },
            )

    def min_tokens(self, text: str) -> int:
        """See `Prompts`; 0 if no vocabulary bounds it."""
        bound = self._bounds.get(ChatRequest)
        return 0 if bound is None else bound.min_tokens(text)

    async def run(self, characters: int, caller: str, work: Callable[[], T]) -> T:
        """Runs a caller's work on so many characters of text in a thread."""
        threads = self._short if characters <= _LONG_CHARACTERS else self._long
        try:
            return await threads.run(caller, work)
        finally:
            freed(characters)


class PromptWorkers(TextWorkers):
    """Builds prompts in threads.

    Args:
        builder: Builds the prompts.
        tokenizer: See `TextWorkers`.
    """

    def __init__(self, builder: PromptBuilder, tokenizer: Tokenizer | None) -> None:
        super().__init__(tokenizer)
        self._builder = builder

    async def prepare(
        self, request: Request, media: PreparedMedia, admitted: AdmittedRequest
    ) -> PreparedPrompt:
        """Builds the prompt of an admitted request.

        Raises:
            ServiceError: The prompt is invalid; the error names the field.
        """
        # Rendering and tokenising a long prompt must not block the event loop (CVE-2025-62426).
        prompt = await self.run(
            num_characters(request),
            admitted.caller,
            lambda: self._builder.build(request, media.images),
        )
        media_tokens = sum(image.num_tokens for image in prompt.images)
        return PreparedPrompt(
            prompt=prompt,
            pixels=[image.pixels for image in media.images],
            infos=media.infos,
            usage=TokenUsage(
                prompt_tokens=len(prompt.token_ids),
                image_tokens=media_tokens - media.video_tokens,
                video_tokens=media.video_tokens,
            ),
        )


def num_characters(request: Request) -> int:
    """Characters of text that the prompt of a request is made of."""
    return len(_text_of(request)[0]) + _length_of_tools(request)


def _text_of(request: Request) -> tuple[str, tuple[int, ...]]:
    """The text of a request that its prompt contains as it is, or its token ids."""
    if not isinstance(request, ChatRequest):
        prompt = request.prompt
        return (prompt, ()) if isinstance(prompt, str) else ("", prompt)
    parts = (part for message in request.messages for part in message.parts)
    return "".join(part.text for part in parts if isinstance(part, TextPart)), ()


def _length_of_tools(request: Request) -> int:
    """Characters of tools, calls and reasoning, of which the prompt may contain fewer."""
    if not isinstance(request, ChatRequest):
        return 0
    tools = sum(len(tool.description) + len(tool.parameters) for tool in request.tools)
    calls = sum(len(call.arguments) for message in request.messages for call in message.tool_calls)
    return tools + calls + sum(len(message.reasoning) for message in request.messages)
