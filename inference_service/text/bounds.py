"""A lower bound of the number of tokens of a text, found without tokenising it.

Every token covers a piece of the text. So a text with n bytes of some kind has at least n / m tokens, if no token has
more than m bytes of that kind. The kinds keep apart what vocabularies compress well (long runs of spaces and of
punctuation) and what they do not.
"""

from __future__ import annotations

from collections.abc import Iterable
import string
from typing import Final


_NFC_FACTOR: Final = 4
"""NFC makes text at most so many times shorter in UTF-8: at most four characters of three bytes become one of three."""

_ALPHANUMERIC: Final = (string.ascii_letters + string.digits).encode()
_OTHER: Final = bytes(byte for byte in range(128) if byte not in _ALPHANUMERIC)
_HIGH: Final = bytes(range(128, 256))


class TokenBound:
    """Lower bounds for one vocabulary.

    Args:
        token_bytes: The bytes of every token.
    """

    def __init__(self, token_bytes: Iterable[bytes]) -> None:
        self._maxima = [1, 1, 1]
        for token in token_bytes:
            self._maxima = list(map(max, self._maxima, _counts(token)))

    def min_tokens(self, text: str) -> int:
        """Minimum number of tokens of a text, whether it is normalised to NFC or not."""
        alphanumeric, other, high = _counts(text.encode("utf-8", errors="replace"))
        # Characters beyond ASCII have two bytes or more; each may be an accent that takes one ASCII character with it.
        accents = high // 2
        counts = (max(0, alphanumeric - accents), max(0, other - accents), high // _NFC_FACTOR)
        return max(
            -(-count // maximum) for count, maximum in zip(counts, self._maxima, strict=True)
        )


def _counts(data: bytes) -> tuple[int, int, int]:
    """Bytes of ASCII letters and digits, of other ASCII, and of characters beyond ASCII."""
    alphanumeric = len(data) - len(data.translate(None, _ALPHANUMERIC))
    other = len(data) - len(data.translate(None, _OTHER))
    return alphanumeric, other, len(data) - alphanumeric - other
