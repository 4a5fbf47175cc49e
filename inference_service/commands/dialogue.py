"""A conversation with a service: history, images, answers as they arrive, boxes drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
import sys
import time
from typing import Any

from inference_service.commands.draw import (
    DrawError,
    draw_boxes,
    image_size,
    open_image,
    require_local_image,
)
from inference_service.commands.image_words import Image, ImageWordError
from qwenvl import Client
from qwenvl.images import image as image_of
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.interrupts import INTERRUPTED


_SHOWN_CHARACTERS = 80


@dataclass(slots=True)
class _Attached:
    """An image that belongs to the next question."""

    source: Image
    part: message_pb.Part


@dataclass(slots=True)
class _Clock:
    """When an answer was asked for, began and ended, and how many tokens it has."""

    asked: float
    began: float | None = None
    tokens: int = 0

    def summary(self) -> str:
        """Tokens, tokens per second after the first, and the time to the first."""
        if self.began is None:
            return ""
        words = [f"{self.tokens} tokens" if self.tokens != 1 else "1 token"]
        seconds = time.monotonic() - self.began
        if self.tokens > 1 and seconds > 0:
            words.append(f"{(self.tokens - 1) / seconds:.1f} tokens/s")
        words.append(f"first after {self.began - self.asked:.2f} s")
        return f"[{', '.join(words)}]"


def _in_terminal() -> bool:
    return sys.stderr.isatty()


@dataclass(slots=True, kw_only=True)
class Dialogue:
    """A conversation in progress.

    Attributes:
        client: Connection to the service.
        model: A served name; None = the canonical one.
        system: System message of new conversations.
        sampling: Fields of `SamplingOptions` by name.
        draw: File for the last image with the boxes of each answer.
        font: Font file for their labels.
        statistics: Print speed and length of each answer to standard error.
    """

    client: Client
    model: str | None = None
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    draw: Path | None = None
    font: Path | None = None
    statistics: bool = field(default_factory=_in_terminal)
    _messages: list[message_pb.Message] = field(default_factory=list)
    _attached: list[_Attached] = field(default_factory=list)
    _shown: Image | None = None

    def restart(self) -> None:
        """Forgets the conversation and the images of the next question."""
        self._messages, self._attached, self._shown = [], [], None

    def models(self) -> Sequence[model_pb.Model]:
        """The served names, the canonical one first; errors as `ask`."""
        return self.client.models()

    def attach(self, image: Image) -> _Attached:
        """Adds an image to the next question.

        Raises:
            ImageWordError: The file is empty or too large, or the URL is malformed.
            OSError: The file cannot be read.
        """
        try:
            part = message_pb.Part(image=image_of(image))
        except ValueError as error:
            raise ImageWordError(f"{str(image)[:_SHOWN_CHARACTERS]}: {error}") from None
        attached = _Attached(image, part)
        self._attached.append(attached)
        return attached

    def attach_checked(self, image: Image) -> str:
        """As `attach`; asks the service about the image first.

        Returns:
            What the image is: name, size in pixels and tokens.

        Raises:
            Error: The service refuses the image, or is unreachable.
            ImageWordError: As `attach`.
            OSError: The file cannot be read.
        """
        attached = self.attach(image)
        try:
            message = message_pb.Message(role=message_pb.ROLE_USER, parts=[attached.part])
            usage = self.client.count_tokens([message], model=self.model)
        except BaseException:
            self._attached.remove(attached)
            raise
        tokens = sum(
            detail.tokens
            for detail in usage.prompt_details
            if detail.modality == usage_pb.MODALITY_IMAGE
        )
        size = image_size(image) if isinstance(image, Path) else None
        pixels = "" if size is None else f"{size[0]} x {size[1]} pixels, "
        return f"image {len(self._attached)}: {image}, {pixels}{tokens} tokens"

    def ask(self, question: str) -> int:
        """Asks a question about the attached images and prints the answer as it arrives; returns the exit status.

        The images belong to this question, whatever becomes of it.

        Raises:
            Error: The service refuses or is unreachable; the question is not kept in the history.
            DrawError: The boxes cannot be drawn.
        """
        attached, self._attached = self._attached, []
        parts = [*(image.part for image in attached), message_pb.Part(text=question)]
        message = message_pb.Message(role=message_pb.ROLE_USER, parts=parts)
        status, answer, found = self._stream([*self._opening(), message])
        reply = message_pb.Part(text=answer)
        self._messages += [
            *([] if self._messages else self._opening()),
            message,
            message_pb.Message(role=message_pb.ROLE_ASSISTANT, parts=[reply]),
        ]
        if attached:
            self._shown = attached[-1].source
        return status if status or self.draw is None else self._draw(self.draw, found)

    def _opening(self) -> list[message_pb.Message]:
        """The messages before the next question."""
        if self._messages or not self.system:
            return self._messages
        part = message_pb.Part(text=self.system)
        return [message_pb.Message(role=message_pb.ROLE_SYSTEM, parts=[part])]

    def _stream(
        self, messages: Sequence[message_pb.Message]
    ) -> tuple[int, str, list[usage_pb.Grounding]]:
        """Prints an answer as it arrives, its reasoning as what is no answer; returns status, text and boxes."""
        answer, thought, status = "", "", 0
        found: list[usage_pb.Grounding] = []
        clock = _Clock(time.monotonic())
        events = self.client.events(
            messages, model=self.model, grounding=self.draw is not None, **self.sampling
        )
        with contextlib.closing(events):
            try:
                for event in events:
                    if (event.delta.text or event.delta.reasoning) and clock.began is None:
                        clock.began = time.monotonic()
                    thought += event.delta.reasoning
                    print(printable(event.delta.reasoning), end="", file=sys.stderr, flush=True)
                    if thought and event.delta.text and not answer:
                        print(file=sys.stderr, flush=True)
                    answer += event.delta.text
                    print(printable(event.delta.text), end="", flush=True)
                    found.extend(event.finished.groundings)
                    clock.tokens = event.usage.completion_tokens or clock.tokens
            except KeyboardInterrupt:
                status = INTERRUPTED
        print(flush=True)
        if self.statistics and not status and (summary := clock.summary()):
            print(summary, file=sys.stderr, flush=True)
        return status, answer, found

    def _draw(self, out: Path, found: Sequence[usage_pb.Grounding]) -> int:
        shown = require_local_image([self._shown])
        if not found:
            print("The answer contains no boxes; nothing was drawn.", file=sys.stderr)
            return 1
        limits = self.client.models()[0].image_limits
        image = open_image(shown, exif_transposed=limits.exif_transposed)
        drawn, legend = draw_boxes(image, found, self.font)
        try:
            drawn.save(out)
        except (OSError, ValueError) as error:
            raise DrawError(f"{out}: cannot be written as an image") from error
        print(f"{out}: {len(found)} {'box' if len(found) == 1 else 'boxes'} drawn", file=sys.stderr)
        _print_legend(legend)
        return 0


def _print_legend(legend: Mapping[str, str]) -> None:
    if legend:
        print("labels that the font lacks (--font FILE names another one):", file=sys.stderr)
    for number, label in legend.items():
        print(f"{number} = {printable(label)}", file=sys.stderr)


def printable(text: str) -> str:
    """Removes control characters: model output must not control the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
