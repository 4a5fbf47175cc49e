"""The sequences in the engine: those that run, with what they hold there, and those that wait to be admitted.

A sequence is admitted when there are pages for all its current tokens, so only growing answers can run out of pages.
Then the newest running sequence is preempted: it loses its pages, keeps its answer so far, and is recomputed from the
start. A caller of whom nothing runs need not wait for the answers of others: if there is no room, those that have
overtaken its sequence are preempted, see `shares`, and then the newest sequence of the caller with the most.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from inference_service.engine.blocks import BlockManager
from inference_service.engine.counters import Counters
from inference_service.engine.image_planner import ImagePlanner
from inference_service.engine.sequence import Sequence
from inference_service.engine.shares import overdue, overtakes


class Batch:
    """Admits sequences, and preempts them.

    Attributes:
        waiting: In order of arrival; those that were preempted come first.
        running: In order of admission, but those that have overtaken another come after it. Of each caller in order of
            arrival, and all older than its waiting ones.

    Args:
        blocks: The pages of the KV cache.
        images: Gives back the images of sequences that leave the batch.
        max_num_seqs: How many sequences run, at most.
        counters: Counts preemptions, and queries, hits and misses of the prefix cache.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        blocks: BlockManager,
        images: ImagePlanner,
        *,
        max_num_seqs: int,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._blocks = blocks
        self._images = images
        self._max_num_seqs = max_num_seqs
        self._counters = counters
        self._clock = clock
        self._num_admitted = 0
        self._free_slots = list(range(max_num_seqs))  # a heap: the slots in use stay close together

    @property
    def running_by_caller(self) -> Counter[str]:
        """How many sequences of each caller run."""
        return Counter(sequence.caller for sequence in self.running)

    def queue(self, sequences: Iterable[Sequence]) -> None:
        """Have new sequences wait."""
        now_s = self._clock()
        for sequence in sequences:
            sequence.arrived_s = sequence.waits_since_s = now_s
            self.waiting.append(sequence)

    def admit(self, sequence: Sequence) -> bool:
        """Admit a waiting sequence, if there is room."""
        # A token that is not known yet would be missing in the history of its new slot.
        if len(self.running) == self._max_num_seqs or sequence.num_pending:
            return False
        # Cached pages have no logits, so prompt log probabilities require computing the prompt.
        if not self._blocks.admit(sequence, use_cache=not sequence.wants_prompt_logprobs):
            return False
        self.waiting.remove(sequence)
        place = len(self.running)
        while place and overtakes(self.running[place - 1], sequence):
            place -= 1  # they are preempted before it when pages run out
        self.running.insert(place, sequence)
        sequence.admission = self._num_admitted
        self._num_admitted += 1
        sequence.slot = heappop(self._free_slots)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            sequence.admitted_s = self._clock()
            self._counters.prefix_queries += sequence.num_prompt_tokens
            self._counters.prefix_hits += sequence.num_cached_tokens
            self._counters.prefix_misses.update(sequence.prefix_misses)
        return True

    def fits(self, sequence: Sequence) -> bool:
        """Whether there is room for a waiting sequence."""
        return len(self.running) < self._max_num_seqs and self._has_pages(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Have a running sequence wait again, before all others."""
        self._counters.preemptions += 1
        self._leave(sequence)
        sequence.waits_since_s = self._clock()
        self.waiting.appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence for good, whether it runs or waits."""
        if sequence in self.running:
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)

    def make_room(self) -> Sequence | None:
        """Preempt sequences for callers of whom none runs, one sequence for each; others keep what `may_fit` tells.

        Returns:
            Of the late sequences that can have their room the one that has waited longest.
        """
        first = self._first_waiting()
        late = overdue(first, (), self._clock())
        for one in late:
            if one.late_since is None:
                one.late_since = self._num_admitted
        fitting = set()
        for sequence in first:
            if not self.may_fit(sequence):
                continue
            fitting.add(sequence)
            while not self.fits(sequence):
                gives_way = self._gives_way(sequence)
                if gives_way is None:
                    break
                self.preempt(gives_way)
        return next((one for one in late if one in fitting), None)

    def may_fit(self, sequence: Sequence) -> bool:
        """Whether there is room for a waiting sequence, or would be if all left that may be preempted for it.

        The oldest sequence of each caller is not preempted for others, unless it has overtaken them. Before it is known
        which pages of a sequence are cached, nobody waits for it or is preempted for it.
        """
        kept: dict[str, Sequence] = {}
        for one in self.running:
            if not overtakes(one, sequence):
                kept.setdefault(one.caller, one)
        if len(kept) >= self._max_num_seqs:
            return False
        if self._has_pages(sequence) and len(self.running) < self._max_num_seqs:
            return True
        if self._blocks.puts_off(sequence):
            return False
        needed = -(-len(sequence) // self._blocks.page_size)
        return needed <= self._blocks.num_beside(kept.values())

    def _gives_way(self, sequence: Sequence) -> Sequence | None:
        """Who is preempted next for a sequence of a caller of whom none runs."""
        newest_first = self.running[::-1]
        overtaking = (one for one in newest_first if overtakes(one, sequence))
        if (one := next(overtaking, None)) is not None:
            return one
        greedy, count = max(self.running_by_caller.items(), key=lambda item: item[1])
        return next(one for one in newest_first if one.caller == greedy) if count > 1 else None

    def _first_waiting(self) -> list[Sequence]:
        """The first waiting sequence of each caller of whom none runs."""
        running = self.running_by_caller
        first: dict[str, Sequence] = {}
        for sequence in self.waiting:
            if sequence.caller not in running:
                first.setdefault(sequence.caller, sequence)
        return list(first.values())

    def _has_pages(self, sequence: Sequence) -> bool:
        """Whether there are pages for a waiting sequence, if it is known how many it needs."""
        return self._blocks.fits(sequence, use_cache=not sequence.wants_prompt_logprobs)

    def _leave(self, sequence: Sequence) -> None:
        """Remove a sequence from the batch and free what it has there."""
        self.running.remove(sequence)
        sequence.epoch += 1
        heappush(self._free_slots, sequence.slot)
        self._blocks.release(sequence)
        self._images.leave(sequence)
