"""Says what the compiler of grammars refuses in the words of what the caller wrote."""

from __future__ import annotations

import re
from typing import Final


_MAX_CHARS: Final = 200
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]+")
_NOISE: Final = re.compile(
    r'^(?:at \d+\(\d+\): |failed to compile JSON schema: |invalid regex ".*" \(in regex\): )+'
)
"""Places in texts that callers did not write, and what their text was compiled to."""
_ENDLESS: Final = "it refers to itself without end"
_WORDS: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"oneOf constraints are not supported.*",
            "oneOf has alternatives that one value may match: require a property with a const in each, or write anyOf",
        ),
        (r"NoExtensionBias", _ENDLESS),
        (r"circular references with sibling keys.*", _ENDLESS),
        (r"parser error: Too many items.*", f"{_ENDLESS}, or is too complex"),
        (
            r"min/maxProperties only supported.*",
            "minProperties and maxProperties can be enforced only where all properties are required",
        ),
        (
            r"Unsatisfiable schema: (?:\w+Properties \(\d+\) is greater.*|required > maxProperties)",
            "no value can match: minProperties, maxProperties and the properties contradict each other",
        ),
        (
            r"Unsatisfiable schema: Regex is empty.*",
            "no value can match: the pattern, the format and the lengths of a text contradict each other",
        ),
        (
            r"Unsatisfiable schema: anyOf is empty",
            "no value can match: the list of values or alternatives has none that is possible",
        ),
        (
            r"Unsatisfiable schema: range .* does not contain a multiple of .*",
            "no value can match: multipleOf has no multiple between the minimum and the maximum",
        ),
        (r"Unsatisfiable schema: (.*)", r"no value can match: \1"),
        (
            r"lookarounds not supported yet.*",
            "look-around and word boundaries are not supported in regular expressions",
        ),
        (
            r"patternProperty regexes (.*) are not disjoint",
            r"patternProperties has \1, which the same name may match",
        ),
        (r"Expected f64 for '(\w+)', got (.*)", r"\1 must be a number, but is \2"),
        (
            r"Expected positive integer for '(\w+)', got (.*)",
            r"\1 must be an integer of at least 0, but is \2",
        ),
        (r"Expected array for '(\w+)', got (.*)", r"\1 must be an array, but is \2"),
        (r"Expected (\w+) for '(\w+)'(?: item)?, got (.*)", r"\2 must be of type \1, but has \3"),
        (r"invalid multiple of", "multipleOf must be more than 0"),
        (
            r"(?:Pointer|Anchor) '(.*)' does not exist",
            r"$ref '#\1' refers to nothing in the schema",
        ),
        (
            r"Invalid type: (.*)",
            r"type is \1, but must be array, boolean, integer, null, number, object or string",
        ),
    )
)


def one_line(text: str) -> str:
    """What an error of the compiler says, in one line of at most 203 printable characters."""
    lines = [line.removeprefix("error: ") for line in text.splitlines() if line[:6] == "error:"]
    line = (lines or text.splitlines() or [""])[0]
    line = _NOISE.sub("", _ADDRESS.sub("", line))
    line = "".join(character if character.isprintable() else " " for character in line)
    for pattern, words in _WORDS:
        if match := pattern.fullmatch(line):
            line = match.expand(words)
            break
    return line if len(line) <= _MAX_CHARS else f"{line[:_MAX_CHARS]}..."
