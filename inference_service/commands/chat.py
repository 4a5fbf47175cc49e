"""`qwenvl chat`: ask questions about images in a terminal, over gRPC."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
import os
from pathlib import Path
import sys

import grpc

from inference_service.commands import INTERRUPTED
from inference_service.commands.draw import DrawError, draw_boxes, open_image
from qwenvl import Client, Error
from qwenvl.flags import ENV_PREFIX
from qwenvl.images import image as image_of
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb


_DEFAULT_TARGET = "127.0.0.1:50051"
_HELP = (
    "/image FILE attaches an image to the next question, /new starts a new conversation,"
    " Ctrl-C stops an answer, Ctrl-D exits."
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "chat",
        help="ask a running service about images",
        description="Ask a running service about images. Without a question, start an interactive conversation: "
        + _HELP,
    )
    parser.add_argument(
        "question", nargs="?", help="question to ask; omit it for an interactive conversation"
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE|URL",
        help="image for the question; can be repeated",
    )
    parser.add_argument(
        "--grpc-target",
        default=os.environ.get(ENV_PREFIX + "GRPC_TARGET") or _DEFAULT_TARGET,
        metavar="TARGET",
        help=f"gRPC target of the service; also QWENVL_GRPC_TARGET (default: {_DEFAULT_TARGET})",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file with the API key in its first line (default: the key in QWENVL_API_KEY, if set)",
    )
    parser.add_argument("--model", help="served model name (default: the service's canonical name)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--temperature", type=float, help="sampling temperature (default: the service's)"
    )
    parser.add_argument(
        "--max-tokens", type=int, help="maximum tokens per answer (default: the service's)"
    )
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="FILE",
        help="write the last image with the boxes of the answer drawn on it to this file",
    )
    parser.add_argument(
        "--font", type=Path, metavar="FILE", help="font file for the labels of --draw"
    )
    parser.set_defaults(run=run)


@dataclass(slots=True)
class _Dialogue:
    """A conversation in progress.

    Attributes:
        client: Connection to the service.
        flags: The parsed command line.
        messages: The history, oldest message first.
        image: The last image in `messages` if it is a local file, else None.
    """

    client: Client
    flags: argparse.Namespace
    messages: list[message_pb.Message] = field(default_factory=list)
    image: Path | None = None

    def begin(self) -> None:
        """Starts a new conversation."""
        system = self.flags.system
        self.messages = [_message(message_pb.ROLE_SYSTEM, system)] if system else []
        self.image = None

    def ask(self, question: str, images: Sequence[str]) -> int:
        """Asks a question and prints the answer as it arrives; returns the exit status.

        Raises:
            Error: The service refuses or is unreachable; the question is not kept in the history.
            OSError: An image cannot be read.
            DrawError: The boxes cannot be drawn.
        """
        message = _message(message_pb.ROLE_USER, question, images)
        answer = ""
        found: list[usage_pb.Grounding] = []
        sampling = {
            name: value
            for name in ("temperature", "max_tokens")
            if (value := getattr(self.flags, name)) is not None
        }
        events = self.client.events(
            [*self.messages, message],
            model=self.flags.model,
            grounding=self.flags.draw is not None,
            **sampling,
        )
        interrupted = False
        with contextlib.closing(events):
            try:
                for event in events:
                    answer += event.delta.text
                    print(_printable(event.delta.text), end="", flush=True)
                    found.extend(event.finished.groundings)
            except KeyboardInterrupt:
                interrupted = True
        print()
        self.messages += [message, _message(message_pb.ROLE_ASSISTANT, answer)]
        if images:
            self.image = None if _is_url(images[-1]) else Path(images[-1])
        if interrupted:
            return INTERRUPTED
        return self._draw(found) if self.flags.draw else 0

    def _draw(self, found: Sequence[usage_pb.Grounding]) -> int:
        out: Path = self.flags.draw
        if self.image is None:
            raise DrawError("--draw needs a local image file as the last image")
        if not found:
            print("The answer contains no boxes; nothing was drawn.", file=sys.stderr)
            return 1
        limits = self.client.models()[0].image_limits
        image = open_image(self.image, exif_transposed=limits.exif_transposed)
        try:
            draw_boxes(image, found, self.flags.font).save(out)
        except (OSError, ValueError) as error:
            raise DrawError(f"{out}: cannot be written as an image") from error
        print(f"{out}: {len(found)} {'box' if len(found) == 1 else 'boxes'} drawn", file=sys.stderr)
        return 0


def run(flags: Mapping[str, object]) -> int:
    """Runs the command; returns the exit status."""
    options = argparse.Namespace(**flags)
    try:
        with Client(options.grpc_target, api_key=_api_key(options.api_key_file)) as client:
            dialogue = _Dialogue(client, options)
            dialogue.begin()
            if options.question is not None:
                return dialogue.ask(options.question, options.image)
            return _converse(dialogue, list(options.image))
    except (Error, DrawError, OSError) as error:
        print(_reason(error, options.grpc_target), file=sys.stderr)
        return 1


def _converse(dialogue: _Dialogue, images: list[str]) -> int:
    """Reads questions until the end of input; an error discards the question and its images, not the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - gives `input` a history; not on every platform
    print(_HELP, file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        word, _, rest = line.partition(" ")
        if word == "/new":
            dialogue.begin()
            images = []
        elif word == "/image":
            images.append(rest.strip())
        elif line:
            # Cleared even on failure: an unreadable image would make every further question fail.
            asked, images = images, []
            try:
                dialogue.ask(line, asked)
            except (Error, DrawError, OSError) as error:
                print(_reason(error, dialogue.flags.grpc_target), file=sys.stderr)


def _message(role: message_pb.Role, text: str, images: Sequence[str] = ()) -> message_pb.Message:
    parts = [
        message_pb.Part(image=image_of(image if _is_url(image) else Path(image)))
        for image in images
    ]
    return message_pb.Message(role=role, parts=[*parts, message_pb.Part(text=text)])


def _is_url(image: str) -> bool:
    return image.startswith(("http://", "https://"))


def _api_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(ENV_PREFIX + "API_KEY") or None
    return file.read_text().strip().partition("\n")[0]


def _printable(text: str) -> str:
    """Removes control characters: model output must not control the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def _reason(error: Exception, target: str) -> str:
    if isinstance(error, Error):
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
            return f"no service is reachable at {target}; start one with: qwenvl serve"
        return error.message or str(error)
    return str(error)
