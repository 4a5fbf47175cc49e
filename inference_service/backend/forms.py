"""The form that answers must have: that of the request itself, and that of its tools."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import time
from typing import Final

from inference_service.backend.prompts import PreparedPrompt, Prompts
from inference_service.backend.served_model import Model
from inference_service.backend.tool_forms import FormWriter, tried_form
from inference_service.constraint import Constraint, ConstraintKind
from inference_service.domain import ChatRequest, ImageInfo, Request
from inference_service.errors import InvalidArgumentError, UnsupportedParameterError
from inference_service.grammar.checker import ConstraintChecker
from inference_service.metrics import families
from inference_service.metrics.requests import current_request
from inference_service.model_spec import BoxNotation
from inference_service.text.output.answer import Answer
from inference_service.text.output.reasoning import CLOSE_TAG, ReasoningStart
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tool_grammar import asks_for_form


_KINDS: Final = {kind: kind.value for kind in ConstraintKind} | {ConstraintKind.LARK: "grammar"}


def check_grounding(request: Request, notation: BoxNotation) -> None:
    """Checks that boxes are asked of a model that writes them.

    Raises:
        UnsupportedParameterError: It writes none.
    """
    if request.grounding and notation is BoxNotation.NONE:
        raise UnsupportedParameterError(
            "grounding is not supported by this model: its answers contain no boxes.",
            field="spec.response.grounding",
        )


async def with_form(
    request: Request, model: Model, prompts: Prompts, checker: ConstraintChecker, caller: str
) -> Request:
    """The request with the form that its answers must have, once that has been tried.

    Args:
        request: The request.
        model: The model.
        prompts: Writes the forms of tools in threads.
        checker: Tries constraints.
        caller: Who asks; callers take turns.

    Raises:
        ServiceError: It cannot be used.
    """
    if isinstance(request, ChatRequest) and asks_for_form(request, model.abilities):
        writer = FormWriter(model, prompts, caller)
        form = await writer.write(request)
        with _measured(form):
            form = await tried_form(form, request, writer, checker, caller)
        return dataclasses.replace(request, constraint=form)
    if request.constraint is not None:
        with _measured(request.constraint):
            await checker.check(request.constraint, caller)
    return request


@contextlib.contextmanager
def _measured(form: Constraint) -> Iterator[None]:
    """Measures the trial of a form, and counts it if it is refused."""
    begin_s = time.monotonic()
    try:
        yield
    except InvalidArgumentError:
        families.CONSTRAINTS_REJECTED.labels(_KINDS[form.kind]).inc()
        raise
    finally:
        end_s = time.monotonic()
        families.CONSTRAINT_COMPILE.observe(end_s - begin_s)
        current_request().part("constraint", begin_s, end_s)


def form_begins_after(
    request: Request, prepared: PreparedPrompt, tokenizer: Tokenizer
) -> int | None:
    """The token after which the answer has its form: the end of the reasoning, if the prompt opens it.

    Raises:
        UnsupportedParameterError: The reasoning has no such token.
    """
    if request.constraint is None or prepared.prompt.reasoning is not ReasoningStart.OPEN:
        return request.constraint_after
    token_id = tokenizer.added_tokens.get(CLOSE_TAG)
    if token_id is None:
        raise UnsupportedParameterError(
            "The form of an answer cannot be given while the model reasons: disable reasoning.",
            field="spec.constraint",
        )
    return token_id


def new_answers(
    request: Request, prepared: PreparedPrompt, model: Model, images: tuple[ImageInfo, ...]
) -> list[Answer]:
    """The answers of a request, one for every choice."""
    return [
        Answer(
            index,
            request,
            model.tokenizer,
            model.box_notation,
            images,
            tools=model.abilities.tools,
            reasoning=prepared.prompt.reasoning,
        )
        for index in range(request.n)
    ]
