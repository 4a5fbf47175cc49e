"""Allocates the pages of the KV cache, and finds and reuses the pages of equal prompt prefixes.

A page is in one of three states: used (referenced by at least one sequence), cached (unreferenced, but its content can
be found by hash) or free. Only full, computed pages are shared, so a page that is being written has one owner.

A long prompt that is cached takes milliseconds to hash, which all answers would wait for. So a plan hashes some pages,
and a sequence of which more remain is admitted by a later plan, which goes on where this one has stopped.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from inference_service.engine.sequence import Sequence


_HASHES_PER_PLAN: Final = 2048
"""Pages; each takes about 5 microseconds."""
_LEAST_HASHES: Final = 32
"""Pages that every sequence may have hashed in a plan, whatever others take: so it is not put off for ever."""


def root_hash(cache_salt: bytes, rope_level: int = 0) -> bytes:
    """The start of a hash chain, different for different salts and rotary frequencies."""
    frequencies = rope_level.to_bytes(8, "little")
    return blake2b(cache_salt, digest_size=32, person=b"kv-root", salt=frequencies).digest()


def page_hash(
    parent: bytes, token_ids: Iterable[int], images: Iterable[tuple[bytes, int]]
) -> bytes:
    """The hash of a full page's content.

    Keys and values depend on all tokens before them and on the images of the placeholders, so both are hashed; all
    pages have the same number of tokens, so the concatenation is unambiguous.

    Args:
        parent: Hash of the previous page, or the root hash.
        token_ids: The ids in the page.
        images: (32 byte key, tokens from the image's start to the page's start) of every image in the page;
            the distance is negative if the image begins inside the page.
    """
    digest = blake2b(parent, digest_size=32)
    digest.update(array("q", token_ids).tobytes())
    for key, distance in images:
        digest.update(key)
        digest.update(distance.to_bytes(8, "little", signed=True))
    return digest.digest()


class BlockManager:
    """Allocates the pages of the KV cache to sequences and finds equal prefixes."""

    def __init__(
        self, num_pages: int, page_size: int, *, enable_prefix_caching: bool = True
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.enable_prefix_caching = enable_prefix_caching
        self._references = [0] * num_pages
        self._free = deque(range(num_pages))
        self._cached: OrderedDict[int, None] = OrderedDict()  # unreferenced, oldest first
        self._page_by_hash: dict[bytes, int] = {}
        self._hash_by_page: dict[int, bytes] = {}
        # What was cached until recently: as many pages as there are, so that twice the cache would still have them.
        self._evicted: OrderedDict[bytes, None] = OrderedDict()
        self._hashes_left = _HASHES_PER_PLAN
        self._put_off: set[Sequence] = set()

    @property
    def num_cached(self) -> int:
        """Number of unreferenced pages with reusable content."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Number of unreferenced pages."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Number of pages in use by sequences."""
        return self.num_pages - self.num_available

    def begin_plan(self) -> None:
        """Permit further pages to be hashed."""
        self._hashes_left = _HASHES_PER_PLAN
        self._put_off.clear()

    def puts_off(self, sequence: Sequence) -> bool:
        """Whether this plan has refused a sequence because too many of its pages remain to be hashed."""
        return sequence in self._put_off

    def admit(self, sequence: Sequence, *, use_cache: bool = True) -> bool:
        """Allocate pages for all current tokens of the sequence, or do nothing and return False.

        Pages found in the prefix cache are shared and count as computed. The last token is never taken from the
        cache, as its logits are needed to sample the next one.
        """
        hits = self._hits(sequence, use_cache=use_cache)
        if hits is None:
            return False
        fresh = self._pages_for(len(sequence)) - len(hits)
        if not self._has_room(hits, fresh):
            return False
        sequence.prefix_misses = self._misses(sequence, len(hits), use_cache=use_cache)
        for page in hits:
            self._cached.pop(page, None)
            self._references[page] += 1
        sequence.pages = hits + [self._take() for _ in range(fresh)]
        sequence.page_bits = self._bits(sequence.pages)
        sequence.num_computed_tokens = len(hits) * self.page_size
        sequence.num_published_pages = len(hits)
        return True

    def fits(self, sequence: Sequence, *, use_cache: bool = True) -> bool:
        """Whether `admit` would allocate pages."""
        hits = self._hits(sequence, use_cache=use_cache)
        return hits is not None and self._has_room(hits, self._pages_for(len(sequence)) - len(hits))

    def grow(self, sequence: Sequence) -> bool:
        """Ensure a slot for the sequence's newest token, pending or not; False if no page is left."""
        if len(sequence.pages) < self._pages_for(sequence.num_tokens):
            if not self.num_available:
                return False
            sequence.pages.append(self._take())
            sequence.page_bits |= 1 << sequence.pages[-1]
        return True

    def num_beside(self, sequences: Iterable[Sequence]) -> int:
        """Number of pages that none of some sequences has; takes no look at each page."""
        bits = 0
        for sequence in sequences:
            bits |= sequence.page_bits
        return self.num_pages - bits.bit_count()

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Add the full pages of the sequence's first `num_tokens` tokens, known and computed, to the prefix cache."""
        if not self.enable_prefix_caching:
            return
        num_full = num_tokens // self.page_size
        for index in range(sequence.num_published_pages, num_full):
            name, page = self._hash(sequence, index), sequence.pages[index]
            if (
                name not in self._page_by_hash
            ):  # else an equal page is cached; this one stays private
                self._page_by_hash[name] = page
                self._hash_by_page[page] = name
                if (index + 1) * self.page_size <= sequence.num_prompt_tokens:
                    sequence.num_cache_write_tokens += self.page_size
                self._evicted.pop(name, None)
        sequence.num_published_pages = num_full

    def release(self, sequence: Sequence) -> None:
        """Free all pages of the sequence, the last page first: the start of a prefix is more reusable."""
        for page in reversed(sequence.pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._hash_by_page:
                    self._cached[page] = None
                else:
                    self._free.append(page)
        sequence.pages = []
        sequence.page_bits = 0
        sequence.num_computed_tokens = 0
        sequence.num_published_pages = 0

    def _has_room(self, hits: list[int], fresh: int) -> bool:
        """Whether so many pages are left beside those found."""
        return fresh <= self.num_available - sum(page in self._cached for page in hits)

    def _hits(self, sequence: Sequence, *, use_cache: bool) -> list[int] | None:
        """The cached pages that a sequence is to use; None if this plan cannot tell."""
        if not use_cache or not self.enable_prefix_caching:
            return []
        pages = self._find_prefix(sequence)
        return None if sequence in self._put_off else pages

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """The longest run of cached pages from the sequence's start, as far as this plan may hash; else puts it off."""
        num_full = (len(sequence) - 1) // self.page_size
        known = max(len(sequence.page_hashes), len(sequence.prompt_hashes))
        # Half of what is left: the next sequence has something, too.
        limit = known + max(_LEAST_HASHES, self._hashes_left // 2)
        pages: list[int] = []
        while len(pages) < min(num_full, limit):
            page = self._page_by_hash.get(self._hash(sequence, len(pages)))
            if page is None:
                break
            pages.append(page)
        self._hashes_left -= max(0, len(sequence.page_hashes) - known)
        self._put_off.discard(sequence)
        if len(pages) == limit < num_full:
            self._put_off.add(sequence)
        return pages

    def _misses(self, sequence: Sequence, num_hits: int, *, use_cache: bool) -> dict[str, int]:
        """The tokens that are not taken from the cache, by one of `PREFIX_MISS_REASONS`.

        Full pages behind the first one that is missing have its reason.
        """
        num_tokens = len(sequence)
        if not self.enable_prefix_caching:
            return {"disabled": num_tokens}
        if not use_cache:
            return {"prompt_logprobs": num_tokens}
        num_full = (num_tokens - 1) // self.page_size
        misses = {"partial_page": num_tokens - num_full * self.page_size}
        if num_hits < num_full:
            is_evicted = self._hash(sequence, num_hits) in self._evicted
            reason = "evicted" if is_evicted else "new"
            misses[reason] = (num_full - num_hits) * self.page_size
        return misses

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        """Hash of the sequence's full page `index`; computes the chain before it if needed."""
        hashes, shared = sequence.page_hashes, sequence.prompt_hashes
        if len(hashes) <= index:
            hashes += shared[len(hashes) :]
        while len(hashes) <= index:
            start = len(hashes) * self.page_size
            end = start + self.page_size
            images = sequence.images_between(start, end)
            parent = (
                hashes[-1]
                if hashes
                else root_hash(sequence.request.cache_salt, sequence.rope_level)
            )
            hashes.append(
                page_hash(
                    parent,
                    sequence.token_ids[start:end],
                    [(image.key, start - image.start) for image in images],
                )
            )
            if end <= len(sequence.request.prompt_token_ids):
                shared.append(hashes[-1])
        return hashes[index]

    def _take(self) -> int:
        """An unreferenced page for one writer: a free one, else the oldest cached one."""
        if self._free:
            page = self._free.popleft()
        else:
            page, _ = self._cached.popitem(last=False)
            name = self._hash_by_page.pop(page)
            del self._page_by_hash[name]
            self._evicted[name] = None
            if len(self._evicted) > self.num_pages:
                self._evicted.popitem(last=False)
        self._references[page] = 1
        return page

    def _bits(self, pages: Iterable[int]) -> int:
        """An integer with the bits of some pages set."""
        bits = bytearray(-(-self.num_pages // 8))
        for page in pages:
            bits[page // 8] |= 1 << page % 8
        return int.from_bytes(bits, "little")

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)
