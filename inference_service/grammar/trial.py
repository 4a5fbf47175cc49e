"""The trial process: compiles the constraints of callers where they can do no harm.

Started by `grammar.checker` as `python -P -m inference_service.grammar.trial`; it does not outlive the front. It loads
the model's vocabulary once, and then forks for each trial: a child with limits on CPU time and memory compiles the
constraint and computes one mask. What it would take too long to compile, or what crashes the compiler, ends the child.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
import resource
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from inference_service.child import die_with, limit_memory, silence
from inference_service.grammar.matcher import GrammarError, try_out
from inference_service.grammar.trial_protocol import (
    MAX_PACKET_BYTES,
    TRIALS,
    Ready,
    Trial,
    Verdict,
    encode,
)
from inference_service.grammar.vocabulary import load_vocabulary
from inference_service.media.sandbox import enter_sandbox


if TYPE_CHECKING:
    from llguidance import LLTokenizer

CPU_S: Final = 1.0
"""CPU time of one trial."""
MEMORY_MIB: Final = 512
"""Memory of one trial beyond the vocabulary's."""
_WALL_S: Final = 30
"""Time after which the kernel ends a trial that waits for something; there is nothing to wait for."""
_OTHERS_SIGNALS: Final = frozenset((signal.SIGKILL, signal.SIGALRM))
"""What ends a trial without a fault of its own: a kernel short of memory, and the time above."""
_OOM_SCORE: Final = "900"  # of 1000, as of a decode worker


class Trials:
    """Forks a child for each trial, and reports those that did not report themselves."""

    def __init__(self, sock: socket.socket, vocabulary: LLTokenizer) -> None:
        self._socket = sock
        self._vocabulary = vocabulary
        self._running: dict[int, int] = {}  # process id -> number of the trial

    def serve(self) -> None:
        """Works until the front closes the socket."""
        ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._socket.send(encode(Ready()))
        while True:
            readable, _, _ = select.select([self._socket.fileno(), ended], [], [])
            if ended in readable:
                os.read(ended, 4096)
                self._reap()
            if self._socket.fileno() in readable:
                packet = self._socket.recv(MAX_PACKET_BYTES)
                if not packet:
                    return
                self._begin(TRIALS.decode(packet))

    def _begin(self, trial: Trial) -> None:
        parent = os.getpid()
        child = os.fork()
        if child:
            self._running[child] = trial.number
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            die_with(parent)
            _confine()
            self._socket.send(encode(self._verdict(trial)))
            status = 0
        finally:
            os._exit(status)

    def _verdict(self, trial: Trial) -> Verdict:
        error = ""
        try:
            try_out(self._vocabulary, trial.constraint)
        except GrammarError as caught:
            error = str(caught)
        return Verdict(trial.number, error=error, cpu_s=time.process_time())

    def _reap(self) -> None:
        while self._running:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            number = self._running.pop(child)
            if status:
                lost = os.WIFSIGNALED(status) and os.WTERMSIG(status) in _OTHERS_SIGNALS
                verdict = Verdict(number, exhausted=not lost, lost=lost, cpu_s=CPU_S)
                self._socket.send(encode(verdict))


def _confine() -> None:
    """Limits this process to what a trial needs; exceeding one ends it."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.alarm(_WALL_S)
    limit_memory(MEMORY_MIB * 2**20)
    enter_sandbox()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the process.

    Args:
        argv: Arguments without the program name; None = those of the process.
    """
    parser = argparse.ArgumentParser(prog="inference_service.grammar.trial")
    parser.add_argument("--fd", type=int, required=True, help="socket to the front")
    parser.add_argument("--parent", type=int, required=True, help="process id of the front")
    parser.add_argument("--model-dir", type=Path, required=True, help="directory of the model")
    parser.add_argument("--vocab-size", type=int, help="width of the logits; none = of the family")
    parser.add_argument("--eos-token-ids", default="", help="end tokens, separated by commas")
    args = parser.parse_args(argv)
    die_with(args.parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    vocabulary = load_vocabulary(
        args.model_dir,
        args.vocab_size,
        tuple(map(int, filter(None, args.eos_token_ids.split(",")))),
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # read-only in some containers
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    silence()
    with socket.socket(fileno=args.fd) as sock, contextlib.suppress(ConnectionError):
        Trials(sock, vocabulary).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
