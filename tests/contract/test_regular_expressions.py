"""The regular expressions of the service: none takes more steps for each character the longer a text is.

A caller's text meets nearly all of them, some in the event loop, and `re` keeps the interpreter's lock
while it matches.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import importlib
from pathlib import Path
import re
from typing import Any, Final

import pytest

import inference_service
from inference_service.text.guard import SpecialTokenGuard
from inference_service.text.output.box_tags import TAGS
import rest_adapter
from tests.support.regex_steps import growing


PACKAGES: Final = (inference_service, rest_adapter)
_FEW: Final = 60
_MANY: Final = 600
"""Texts for each expression, in the default tests and in all."""

BUILT: Final[dict[str, Iterable[re.Pattern[Any]]]] = {
    "inference_service.text.guard": vars(
        SpecialTokenGuard(["<|im_start|>", "<|im_end|>", "<think>"])
    ).values(),
    "inference_service.text.output.box_tags": [tags.pattern() for tags in TAGS.values()],
    "inference_service.grammar.vocabulary": [re.compile("<think>|</think>|(?!)")],
    "inference_service.text.template_check": [re.compile("<img>|<video>")],
    "rest_adapter.origins": [re.compile(r"https?://localhost(?::[0-9]+)?|https://a\.example")],
    "rest_adapter.errors": [re.compile(r"messages(\[\d+\])?(?![\w.])")],
}
"""By module: expressions that functions put together, as they do so or alike."""

METHODS: Final = {
    "inference_service.grammar.error_words": "fullmatch",
    "inference_service.media.formats": "match",
}
"""By module: what is called of the expressions that stand in its tables."""


@dataclass(frozen=True)
class Expression:
    module: str
    pattern: re.Pattern[Any]
    method: str

    @property
    def id(self) -> str:
        return f"{self.module.partition('.')[2]}:{self.pattern.pattern!r}"[:90]


def _modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module that imports `re`, with its source."""
    for package in PACKAGES:
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            source = path.read_text()
            if "import re\n" in source:
                parts = (package.__name__, *path.relative_to(root).with_suffix("").parts)
                yield ".".join(parts), ast.parse(source)
            assert "from re import" not in source, path


def _compiled(value: object) -> Iterator[re.Pattern[Any]]:
    """The expressions in a module's value."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _compiled(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _compiled(one)


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, bool]]:
    """The calls of functions of `re`, each with whether a function makes it."""
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr != "escape"
        ):
            yield node, id(node) in inner


def _method(module: str, tree: ast.Module, name: str) -> str:
    """The most expensive method that a module calls of an expression; a search if it does not name it."""
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    }
    if not used:
        return METHODS.get(module, "search")
    if used - {"match", "fullmatch"}:
        return "search"
    return "match" if "match" in used else "fullmatch"


def _in_functions(module: str, tree: ast.Module) -> Iterator[Expression]:
    """Those that functions write; a test fails where they are put together and `BUILT` does not name them."""
    for call, in_function in _calls(tree):
        if not in_function:
            continue
        try:
            text = ast.literal_eval(call.args[0])
        except ValueError:
            assert module in BUILT, (
                f"{module}:{call.lineno} puts an expression together: add it to BUILT"
            )
            continue
        assert isinstance(call.func, ast.Attribute)
        yield Expression(module, re.compile(text), call.func.attr)


def expressions() -> list[Expression]:
    found: dict[str, Expression] = {}
    for name, tree in _modules():
        module = importlib.import_module(name)
        of_module = [
            Expression(name, pattern, _method(name, tree, variable))
            for variable, value in vars(module).items()
            for pattern in _compiled(value)
        ]
        built = [
            Expression(name, pattern, "search")
            for value in BUILT.get(name, ())
            for pattern in _compiled(value)
        ]
        for one in (*of_module, *_in_functions(name, tree), *built):
            found.setdefault(one.id, one)
    return list(found.values())


EXPRESSIONS: Final = expressions()


def test_all_are_found() -> None:
    """As many as the modules write at their top: what a new form hides would not be tested."""
    written = sum(not inner for _, tree in _modules() for _, inner in _calls(tree))
    assert len(EXPRESSIONS) >= written > 60


@pytest.mark.parametrize("one", EXPRESSIONS, ids=lambda one: one.id)
def test_steps_grow_as_the_text_does(one: Expression) -> None:
    assert growing(one.pattern, one.method, _FEW) is None


@pytest.mark.full
@pytest.mark.parametrize("one", EXPRESSIONS, ids=lambda one: one.id)
def test_steps_grow_as_the_text_does_for_many_texts(one: Expression) -> None:
    assert growing(one.pattern, one.method, _MANY) is None


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}", "search"),
        (r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "sub"),
        (r"((?:the|a)\b[^.?!\n]*?) (is|are) ([^.?!\n]+)\.?", "fullmatch"),
        (r"(?:a+){4}b", "match"),
        (r"(?:(?!</a>).)*</a>", "search"),
        (r"\s+$", "search"),
    ],
)
def test_the_measure_sees_growth(pattern: str, method: str) -> None:
    assert growing(re.compile(pattern), method, _FEW)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [(r"\s++$", "match"), (r"(?<!\s)\s+$", "search"), (r"[a-z]+b", "match"), (r"(?>a+)b", "match")],
)
def test_the_measure_sees_that_there_is_none(pattern: str, method: str) -> None:
    assert growing(re.compile(pattern), method) is None
