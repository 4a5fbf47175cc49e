"""`qwenvl chat`: ask questions about images in a terminal, over gRPC."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
import os
from pathlib import Path
import sys
from typing import Any

import grpc

from inference_service.commands.converse import HELP, converse
from inference_service.commands.dialogue import Dialogue
from inference_service.commands.draw import DrawError, check_drawing, require_local_image
from inference_service.commands.image_words import ImageWordError, read_image_word
from inference_service.commands.sampling_words import read_sampling
from qwenvl import Client, Error
from qwenvl.addresses import check_target
from qwenvl.command_line import EXAMPLES
from qwenvl.environment import ENV_PREFIX
from qwenvl.keys import KeyFileError, read_keys


_DEFAULT_TARGET = "127.0.0.1:50051"
_NOT_GRPC = "http1.x server"  # gRPC's words
_EXAMPLES = (
    EXAMPLES
    + """\
  qwenvl chat                                       a conversation; /help lists its commands
  qwenvl chat --image cat.jpg "What is in this image?"
  qwenvl chat --image street.jpg --draw found.png "Find all cars."
  qwenvl chat --grpc-target inference:50051 --api-key-file key.txt"""
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "chat",
        help="ask a running service about images",
        description="Ask a running service about images. Without a question, start a conversation: "
        + HELP,
        epilog=_EXAMPLES,
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
        help="file whose first key is used (default: the key in QWENVL_API_KEY, if set)",
    )
    parser.add_argument("--model", help="served model name (default: the service's canonical name)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--temperature",
        type=_sampling("temperature"),
        metavar="X",
        help="sampling temperature (default: the service's)",
    )
    parser.add_argument(
        "--max-tokens",
        type=_sampling("max_tokens"),
        metavar="N",
        help="maximum tokens per answer (default: the service's)",
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


def _sampling(name: str) -> Callable[[str], Any]:
    """Reads a sampling setting from the command line."""

    def read(text: str) -> Any:
        try:
            return read_sampling(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def run(flags: Mapping[str, object]) -> int:
    """Runs the command; returns the exit status."""
    options = argparse.Namespace(**flags)
    _accept_any_text()
    try:
        _check_target(options.grpc_target)
        with Client(options.grpc_target, api_key=_api_key(options.api_key_file)) as client:
            check_drawing(draw=options.draw, font=options.font)
            dialogue = _dialogue(client, options)
            images = [image for word in options.image for image in read_image_word(word)]
            if options.question is None:
                return converse(dialogue, images, lambda error: reason(error, options.grpc_target))
            if options.draw is not None:
                require_local_image(images)
            for image in images:
                dialogue.attach(image)
            return dialogue.ask(_decodable(options.question))
    except (Error, DrawError, ImageWordError, KeyFileError, OSError) as error:
        print(reason(error, options.grpc_target), file=sys.stderr)
        return 1


def _dialogue(client: Client, options: argparse.Namespace) -> Dialogue:
    sampling = {
        name: value
        for name in ("temperature", "max_tokens")
        if (value := getattr(options, name)) is not None
    }
    return Dialogue(
        client=client,
        model=options.model,
        system=None if options.system is None else _decodable(options.system),
        sampling=sampling,
        draw=options.draw,
        font=options.font,
    )


def _accept_any_text() -> None:
    """Bytes that are no text, and characters that the terminal does not have, are replaced instead of raised."""
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if hasattr(stream, "reconfigure"):  # not where a test has replaced it
            stream.reconfigure(errors=errors)


def _decodable(argument: str) -> str:
    """An argument of the command line, whose undecodable bytes Python keeps as surrogates, as valid text."""
    return os.fsencode(argument).decode("utf-8", "replace")


def _check_target(target: str) -> None:
    try:
        check_target(target)
    except ValueError as error:
        raise SystemExit(f"--grpc-target={target} (QWENVL_GRPC_TARGET): {error}") from None


def _api_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(ENV_PREFIX + "API_KEY") or None
    try:
        keys = read_keys(file)
    except KeyFileError as error:
        raise KeyFileError(f"--api-key-file={file}: {error}") from None
    if not keys:
        raise KeyFileError(f"--api-key-file={file}: contains no API key")
    return keys[0]


def reason(error: Exception, target: str) -> str:
    """One line about a failed question."""
    if isinstance(error, Error):
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
            if _NOT_GRPC in error.message:
                return (
                    f"{target} speaks HTTP/1.1, not gRPC: it may be the port of the REST API; that of the gRPC API is"
                    " 50051 unless it was changed"
                )
            return f"no service is reachable at {target}; start one with: qwenvl serve"
        return error.message or str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
