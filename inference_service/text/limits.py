"""The maximum length of a prompt's text, which is checked before the text is tokenised."""

from __future__ import annotations

from typing import Final

from inference_service.errors import ContextLengthError


MAX_CHARACTERS: Final = 2**23
"""Longer prompts fit no context window; also stops templates in endless loops."""


def too_many_characters(what: str, field: str) -> ContextLengthError:
    """The error for a text of more than `MAX_CHARACTERS` characters; clients look for its first words."""
    return ContextLengthError(
        f"This model's maximum context length is exceeded: the {what} has more than {MAX_CHARACTERS} characters, which"
        " fit no context window. Please reduce the length of the text.",
        field=field,
        metadata={"max_characters": str(MAX_CHARACTERS)},
    )
