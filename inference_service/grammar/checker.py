"""The front's side of the trial process: tells whether a constraint can be compiled, before the engine has to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
import logging
import os
from pathlib import Path
import socket
import subprocess
import sys
from typing import Any, Final

import msgspec

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.errors import EngineUnavailableError, InvalidArgumentError
from inference_service.grammar.trial_protocol import (
    MAX_PACKET_BYTES,
    REPLIES,
    Ready,
    Trial,
    Verdict,
    encode,
)
from inference_service.line import Line, Place
from inference_service.shared_cache import SharedCache


_COMMAND: Final = (sys.executable, "-P", "-m", "inference_service.grammar.trial")
_START_S: Final = 120.0
_TRIAL_S: Final = 40.0
"""A trial is limited by its CPU time; this is how long it may take on a machine with much else to do."""
_TRIALS: Final = 3
"""Trials at the same time; the last one of a caller that has none."""
_REMEMBERED: Final = 512
_ALWAYS: Final = Verdict(0)

_PARTS: Final = {
    ConstraintKind.JSON_OBJECT: "json_object",
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.CHOICES: "choices",
    ConstraintKind.LARK: "grammar",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of a model, as far as its directory does not tell.

    Attributes:
        size: Width of the logits of a model that is of none of our families; None = of one of them.
        eos_token_ids: Its end tokens.
    """

    size: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the trial process."""
        if self.size is None:
            return ()
        ends = ",".join(map(str, self.eos_token_ids))
        return ("--vocab-size", str(self.size), "--eos-token-ids", ends)


_OF_FAMILY: Final = Vocabulary()


class ConstraintChecker:
    """Tries constraints, each once; the process starts with the first."""

    def __init__(
        self,
        model_dir: Path,
        vocabulary: Vocabulary = _OF_FAMILY,
        *,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        """Starts nothing yet.

        Args:
            model_dir: The directory of the model, whose vocabulary the trials use.
            vocabulary: What is known of the vocabulary.
            command: Program and arguments of the trial process, without its options.
        """
        self._model_dir = model_dir
        self._command = (*command, *vocabulary.options)
        self._process: _TrialProcess | None = None
        self._line = Line(_TRIALS, spare=1, lately_s=0.0)
        self._verdicts: SharedCache[Verdict] = SharedCache(_REMEMBERED)
        self._asked: dict[bytes, _Asked] = {}
        self._trials: set[asyncio.Task[None]] = set()
        self._closed = False

    async def check(self, constraint: Constraint, caller: str = "", *, field: str = "") -> None:
        """Returns if the constraint can be compiled.

        Args:
            constraint: The constraint, within the limits of `grpc_api`.
            caller: Who asks; callers take turns.
            field: Path of its field in the request; empty = that of its kind in `spec.constraint`.

        Raises:
            InvalidArgumentError: It cannot, or it takes too much time or memory.
            EngineUnavailableError: It cannot be tried now.
        """
        part = _PARTS[constraint.kind]
        refuse(await self.verdict(constraint, caller), part, field or f"spec.constraint.{part}")

    async def verdict(self, constraint: Constraint, caller: str = "") -> Verdict:
        """What the trial of a constraint has shown, or shows in a turn of the caller or of another who asks for it.

        A trial that has begun goes on if its callers leave, so that they cannot begin many.

        Raises:
            EngineUnavailableError: It cannot be tried now.
        """
        if constraint.kind is ConstraintKind.JSON_OBJECT:
            return _ALWAYS
        key = constraint.digest
        if (known := self._verdicts.get(key, caller)) is not None:
            return known
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(asyncio.get_running_loop().create_future())
        asked.callers += 1
        place = self._line.ask(caller, 1)
        begins = False
        try:
            await asyncio.wait((place.granted, asked.verdict), return_when=asyncio.FIRST_COMPLETED)
            if not asked.begun:
                begins = asked.begun = True
                trial = asyncio.create_task(self._try(constraint, caller, asked, place))
                self._trials.add(trial)
                trial.add_done_callback(self._trials.discard)
            else:
                place.leave()
            return await asyncio.shield(asked.verdict)
        finally:
            if not begins:
                place.leave()
            asked.callers -= 1
            if not asked.callers and not asked.begun:
                self._forget(key, asked)

    def close(self) -> None:
        """Ends the process; trials end with an error."""
        self._closed = True
        if self._process is not None:
            self._process.close()

    async def _try(self, constraint: Constraint, caller: str, asked: _Asked, place: Place) -> None:
        """Runs a trial and tells all who asked for it."""
        key = constraint.digest
        try:
            verdict = await self._run(constraint)
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            asked.verdict.set_exception(error)
            asked.verdict.exception()  # nobody may wait for it any more
        else:
            self._verdicts.put(key, caller, verdict)
            asked.verdict.set_result(verdict)
        finally:
            place.leave()
            self._forget(key, asked)

    async def _run(self, constraint: Constraint) -> Verdict:
        if self._closed:
            raise _unavailable()
        if self._process is None or self._process.lost:
            self._process = _TrialProcess((*self._command, "--model-dir", str(self._model_dir)))
        verdict = await self._process.run(constraint)
        if verdict.lost:
            raise _unavailable()
        return verdict

    def _forget(self, key: bytes, asked: _Asked) -> None:
        if self._asked.get(key) is asked:
            del self._asked[key]


def refuse(verdict: Verdict, part: str, field: str) -> None:
    """Refuses a constraint unless it has passed its trial.

    Args:
        verdict: The verdict.
        part: What the constraint is called in the error.
        field: Path of its field in the request.

    Raises:
        InvalidArgumentError: It has not.
    """
    if verdict.exhausted:
        raise InvalidArgumentError(
            f"{part} is too complex: compiling it and beginning an answer takes more than a second or too much memory.",
            field=field,
        )
    if verdict.error:
        raise InvalidArgumentError(f"{part} cannot be used: {verdict.error}", field=field)


@dataclass(slots=True, eq=False)
class _Asked:
    """A trial that is asked for.

    Attributes:
        verdict: What it shows.
        callers: How many wait for it.
        begun: It runs.
    """

    verdict: asyncio.Future[Verdict]
    callers: int = 0
    begun: bool = False


class _TrialProcess:
    """A trial process: the constructor starts it.

    Attributes:
        lost: The process has ended; it is of no use any more.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[int, asyncio.Future[Verdict]] = {}
        self._count = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this package's own module
                    [*command, *arguments], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            except OSError as error:
                ours.close()
                logger.error("the trial process cannot be started: %s", error.strerror)  # noqa: TRY400
                raise _unavailable() from None
        ours.setblocking(False)
        self._socket = ours
        self._loop.add_reader(ours, self._receive)

    async def run(self, constraint: Constraint) -> Verdict:
        """The verdict of a trial.

        Raises:
            EngineUnavailableError: The process ended, or does not answer in time.
        """
        self._count += 1
        number = self._count
        verdict: asyncio.Future[Verdict] = self._loop.create_future()
        self._waiting[number] = verdict
        try:
            async with asyncio.timeout(_START_S):
                await asyncio.shield(self._ready)
            async with asyncio.timeout(_TRIAL_S):
                await self._loop.sock_sendall(self._socket, encode(Trial(number, constraint)))
                return await verdict
        except (TimeoutError, OSError):
            self._lose("it does not answer")
            raise _unavailable() from None
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Kills the process and waits for its end, which takes milliseconds."""
        if not self.lost:
            self._give_up()
        self._process.wait()

    def _receive(self) -> None:
        try:
            packet = self._socket.recv(MAX_PACKET_BYTES)
            reply = REPLIES.decode(packet) if packet else None
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError):
            reply = None
        match reply:
            case Ready() if not self._ready.done():
                self._ready.set_result(None)
            case Verdict(number=number) if number in self._waiting:
                future = self._waiting[number]
                if not future.done():
                    future.set_result(reply)
            case None:
                self._lose("it ended")

    def _lose(self, reason: str) -> None:
        if self.lost:
            return
        logger.warning("the trial process %d was lost: %s", self._process.pid, reason)
        self._give_up()
        self._loop.run_in_executor(None, self._process.wait)

    def _give_up(self) -> None:
        self.lost = True
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._process.kill()
        futures: list[asyncio.Future[Any]] = [self._ready, *self._waiting.values()]
        for future in futures:
            if not future.done():
                future.set_exception(_unavailable())
                future.exception()  # nobody may wait for it


def _unavailable() -> EngineUnavailableError:
    return EngineUnavailableError(
        "The constraint cannot be checked at the moment; try again later.", retry_after_s=1.0
    )
