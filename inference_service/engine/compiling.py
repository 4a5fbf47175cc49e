"""Compiles constraints beside the loop: for callers in turn, and only while a request waits for it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import math
import threading
import time
from typing import TYPE_CHECKING, Final

from inference_service.constraint import Constraint
from inference_service.grammar.matcher import new_matcher, raise_error
from inference_service.shared_cache import SharedCache


if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_THREADS: Final = 2
COMPILED: Final = 32
"""Compiled constraints to keep; requests of one application mostly have the same."""
_USUAL_S: Final = 0.1
"""CPU time to compile; what takes more is larger, some 50 MiB for a second, and counts as several."""


class Compilation:
    """A constraint that is, or will be, compiled.

    Attributes:
        constraint: The constraint.
        matcher: Its matcher at the beginning, to be copied for each answer; it may raise what compiling raises.
        waiting: Requests that wait for it.
    """

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.matcher: Future[LLMatcher] = Future()
        self.waiting = 0


class Grammars:
    """Compiles constraints in threads; the loop would stand still meanwhile."""

    def __init__(self, load_vocabulary: Callable[[], LLTokenizer]) -> None:
        """Loads nothing yet: the vocabulary takes a second, and most services never need it."""
        self._load_vocabulary = load_vocabulary
        self._vocabulary: LLTokenizer | None = None
        self._loading = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammars")
        self._changing = threading.Lock()  # what follows
        self._compiled: SharedCache[Compilation] = SharedCache(COMPILED)
        self._unfinished: dict[bytes, Compilation] = {}
        # Of each caller; whose turn is the longest ago comes first.
        self._queues: OrderedDict[str, deque[Compilation]] = OrderedDict()

    def wait_for(self, constraint: Constraint, caller: str) -> Compilation:
        """Has a constraint compiled in a turn of the caller, or another who waits for it, until `leave`."""
        key = constraint.digest
        with self._changing:
            found = self._compiled.get(key, caller) or self._unfinished.get(key)
            if found is None:
                found = self._unfinished[key] = Compilation(constraint)
            if not (found.matcher.running() or found.matcher.done()):
                self._queues.setdefault(caller, deque()).append(found)
                self._threads.submit(self._work)
            found.waiting += 1
        return found

    def leave(self, compilation: Compilation) -> None:
        """A request does not wait any more; what nobody waits for is not begun."""
        with self._changing:
            compilation.waiting -= 1
            if not compilation.waiting and compilation.matcher.cancel():
                del self._unfinished[compilation.constraint.digest]

    def _work(self) -> None:
        """Compiles the next constraint, if any is left."""
        with self._changing:
            turn = self._next()
        if turn is None:
            return
        caller, compilation = turn
        try:
            vocabulary = self._loaded_vocabulary()
            begin = time.thread_time()
            matcher = _compiled(vocabulary, compilation.constraint)
            cost_s = time.thread_time() - begin
        except BaseException as error:  # noqa: BLE001 - a panic of the compiler is no Exception
            self._finish(compilation)
            failure = error if isinstance(error, Exception) else RuntimeError("it panicked")
            compilation.matcher.set_exception(failure)
        else:
            self._finish(compilation, caller, max(1, math.ceil(cost_s / _USUAL_S)))
            compilation.matcher.set_result(matcher)

    def _next(self) -> tuple[str, Compilation] | None:
        """The oldest constraint of the caller whose turn it is, with the caller; it is marked as running."""
        while self._queues:
            caller, queue = self._queues.popitem(last=False)
            while queue:
                compilation = queue.popleft()
                matcher = compilation.matcher
                if matcher.running() or matcher.done():
                    continue  # in the turn of another caller, or nobody waits for it
                matcher.set_running_or_notify_cancel()
                if queue:
                    self._queues[caller] = queue
                return caller, compilation
        return None

    def _finish(self, compilation: Compilation, caller: str | None = None, count: int = 1) -> None:
        """Keeps what was compiled in the turn of a caller; forgets what could not be (None)."""
        key = compilation.constraint.digest
        with self._changing:
            del self._unfinished[key]
            if caller is not None:
                self._compiled.put(key, caller, compilation, count)

    def _loaded_vocabulary(self) -> LLTokenizer:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = self._load_vocabulary()
            return self._vocabulary


def _compiled(vocabulary: LLTokenizer, constraint: Constraint) -> LLMatcher:
    matcher = new_matcher(vocabulary, constraint)
    # The first mask costs the most, of every answer; copies know it.
    matcher.compute_bitmask()
    raise_error(matcher)
    return matcher
