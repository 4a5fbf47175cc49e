"""The form that an answer must have: what the request, the front and the engine call a constraint."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
import hashlib


class ConstraintKind(Enum):
    """What a constraint consists of."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICES = "choices"
    LARK = "lark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """The form that an answer must have.

    Attributes:
        kind: Which of the two fields below is set, and how it is read.
        text: A JSON schema, a regular expression or a grammar in Lark notation.
        values: The permitted answers of `CHOICES`.
        after_break: One or two line breaks may come first, as models write them after their reasoning; not for `LARK`,
            whose grammar says so itself.
    """

    kind: ConstraintKind
    text: str = ""
    values: tuple[str, ...] = ()
    after_break: bool = False

    @property
    def digest(self) -> bytes:
        """32 bytes that equal constraints have in common, and others do not."""
        parts = (self.kind.value, str(self.after_break), self.text, *self.values)
        encoded = [part.encode("utf-8", errors="surrogatepass") for part in parts]
        lengths = ",".join(str(len(part)) for part in encoded)
        return hashlib.sha256(b"\0".join([lengths.encode(), *encoded])).digest()
