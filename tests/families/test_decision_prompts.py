"""The prompts of decisions in the chat formats of all families: a question is written as if together with the input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
import shutil
import tracemalloc
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest

from inference_service.backend.defaults import decision_prompt_format
from inference_service.decisions import DecisionRequest, Option, Question, QuestionKind
from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Role, TextPart
from inference_service.errors import (
    ContextLengthError,
    InvalidArgumentError,
    ServiceError,
    UnsupportedParameterError,
)
from inference_service.families.glm_4v.text import GlmChat, load_tokenizer
from inference_service.families.registry import family_of, load_spec
from inference_service.media.images import ProcessedImage
from inference_service.text.decisions import prompts as prompts_module
from inference_service.text.decisions.labels import Labels
from inference_service.text.decisions.prompts import DecisionPromptBuilder, _asked
from inference_service.text.decisions.wording import PROMPT_FORMATS
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.prompt import ChatFormat, PromptBuilder
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.glm_4v import BEGIN, END, PLACEHOLDER, write_vocabulary
from tests.support.glm_4v import GOLDEN as GLM
from tests.support.qwen_text import QWEN3_VL, TEMPLATES, token_id, tokenizer_json
from tests.support.qwen_vl_v1 import GOLDEN as QWEN_VL


DEMO = Path("inference_service/demo/model")
PAD = token_id("<|image_pad|>")
FORMATS = (*TEMPLATES, "demo", "qwen_vl", "glm_4v")
THINKING = (
    QWEN3_VL.rpartition("{%- if add_generation_prompt %}")[0]
    + "{%- if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Model:
    """The text side of a model."""

    builder: PromptBuilder
    tokenizer: Tokenizer
    end: int
    ends: int = 0

    @property
    def labels(self) -> Labels:
        return Labels(self.builder, self.tokenizer, (self.end,))

    @property
    def decisions(self) -> DecisionPromptBuilder:
        return DecisionPromptBuilder(self.builder, self.tokenizer, self.labels, 1)


def jinja(tokenizer: JsonTokenizer, template: str) -> Model:
    chat = JinjaChat(tokenizer, JinjaTemplate(template), placeholder=PAD)
    builder = PromptBuilder(tokenizer, chat, placeholder=PAD)
    return Model(builder, tokenizer, tokenizer.special_tokens["<|im_end|>"])


def loaded(directory: Path, texts: Path, **options: Any) -> Model:
    spec = load_spec(directory)
    tokenizer, chat = family_of(spec).load_text(texts, spec)
    builder = PromptBuilder(tokenizer, chat, placeholder=spec.image_token_id, **options)
    return Model(builder, tokenizer, tokenizer.special_tokens["<|im_end|>"])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    tokenizer = JsonTokenizer(tokenizer_json())
    glm = tmp_path_factory.mktemp("glm")
    write_vocabulary(glm)
    shutil.copy(GLM / "config" / "config.json", glm)
    chatglm = load_tokenizer(glm)
    chat: ChatFormat = GlmChat(chatglm)
    builder = PromptBuilder(chatglm, chat, placeholder=PLACEHOLDER, ends=(BEGIN, END))
    return {
        **{name: jinja(tokenizer, template) for name, template in TEMPLATES.items()},
        "demo": loaded(DEMO, DEMO),
        "qwen_vl": loaded(QWEN_VL / "configs" / "A", QWEN_VL),
        "glm_4v": Model(builder, chatglm, chatglm.special_tokens["<|user|>"], 2),
    }


def image(tokens: int) -> ProcessedImage:
    return ProcessedImage(
        pixels=bytes(tokens * 3 * 32 * 32),
        height=32,
        width=32 * tokens,
        original_height=1,
        original_width=1,
        grid=(1, 2, 2 * tokens),
        num_tokens=tokens,
        digest=bytes([tokens]) * 32,
    )


ANY = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ("", "\n", " ", "Parcel 7.", "wait...\n", "<|im_", "<|im_end|>", "<ref>x</ref>", "7", "e\u0301")
)
WORDS = ANY.filter(lambda text: bool(text.strip()))
SHOWN = ImagePart(data=b"x")


@st.composite
def requests(draw: Any, *, format_number: int) -> DecisionRequest:
    messages = []
    for role in draw(st.sampled_from(((Role.USER,), (Role.USER, Role.ASSISTANT, Role.USER)))):
        parts: list[Any] = [TextPart(text=draw(ANY))]
        if role is Role.USER and draw(st.booleans()):
            parts.insert(draw(st.integers(0, 1)), SHOWN)
        messages.append(ChatMessage(role=role, parts=tuple(parts)))
    if draw(st.booleans()):
        messages.append(ChatMessage(role=Role.ASSISTANT, parts=(TextPart(text=draw(WORDS)),)))
    options = tuple(Option(value=draw(WORDS), description=draw(ANY)) for _ in range(3))
    asked = [
        Question(
            name=None,
            kind=kind,
            instructions=(TextPart(text=draw(WORDS)),),
            options=() if kind is QuestionKind.PREDICATE else options,
        )
        for kind in QuestionKind
    ]
    evidence = ChatRequest(request_id="r", model="m", messages=tuple(messages))
    return DecisionRequest(evidence=evidence, questions=tuple(asked), prompt_format=format_number)


@pytest.mark.parametrize("number", PROMPT_FORMATS)
@pytest.mark.parametrize("name", FORMATS)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_question_behind_the_input_is_as_if_written_at_once(
    models: dict[str, Model], name: str, number: int, data: Any
) -> None:
    model = models[name]
    request = data.draw(requests(format_number=number))
    images = [image(3 + model.ends) for _ in request.evidence.media]

    prompts = model.decisions.build(request, images)

    between = {1: "\n\n", 2: "\n"}[number]
    labels = model.labels
    for question, prompt in zip(request.questions, prompts.questions, strict=True):
        written = PROMPT_FORMATS[number](question, labels.codes)
        asked = _asked(request.evidence, (TextPart(text=written.text),), between)
        whole = model.builder.build(asked, images)
        found = (*prompts.evidence.token_ids, *prompt.token_ids)
        assert found == (*whole.token_ids, *labels.opening)
        if prompt.whole is None:
            assert prompts.prompt_of(prompt) is prompts.evidence
            assert prompts.evidence.images == whole.images
        else:
            assert prompts.prompt_of(prompt).token_ids == found
            assert prompts.prompt_of(prompt).images == whole.images


@pytest.mark.parametrize("name", FORMATS)
def test_labels_are_what_an_answer_would_begin_with(models: dict[str, Model], name: str) -> None:
    """An answer in the conversation, in place of the question's end, has the label's tokens there."""
    model = models[name]
    labels = model.labels
    asked = ChatRequest(
        request_id="r",
        model="m",
        messages=(
            ChatMessage(role=Role.USER, parts=(TextPart(text="Which?"),)),
            ChatMessage(role=Role.ASSISTANT, parts=(TextPart(text="B"),)),
        ),
        add_generation_prompt=False,
        continue_final_message=True,
    )
    answered = model.builder.build(asked, ()).token_ids
    opened = model.builder.build(
        dataclasses.replace(
            asked,
            messages=asked.messages[:1],
            add_generation_prompt=True,
            continue_final_message=False,
        ),
        (),
    ).token_ids
    assert answered == (*opened, *labels.opening, *labels.token_ids("B"))
    singles = [labels.token_ids(code) for code in labels.codes(26)]
    assert {len(ids) for ids in singles} == {1}
    assert len(set(singles)) == 26
    assert {len(labels.token_ids(code)) for code in labels.codes(255)} <= {1, 2}
    assert len(set(map(labels.token_ids, labels.codes(255)))) == 255


def test_the_frame_of_no_thoughts_stands_before_the_answer(models: dict[str, Model]) -> None:
    model = models["qwen3_vl"]
    request = DecisionRequest(
        evidence=ChatRequest(
            request_id="r",
            model="m",
            messages=(ChatMessage(role=Role.USER, parts=(TextPart(text="x"),)),),
        ),
        questions=(
            Question(name=None, kind=QuestionKind.PREDICATE, instructions=(TextPart(text="y"),)),
        ),
    )
    [question] = model.decisions.build(request, ()).questions
    text = model.tokenizer.decode(question.token_ids, skip_special_tokens=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_model_that_always_thinks_cannot_decide(models: dict[str, Model]) -> None:
    tokenizer = models["qwen3_vl"].tokenizer
    assert isinstance(tokenizer, JsonTokenizer)
    with pytest.raises(UnsupportedParameterError, match="switched off"):
        _ = jinja(tokenizer, THINKING).labels


def test_a_base_model_cannot_decide() -> None:
    spec = dataclasses.replace(load_spec(QWEN_VL / "configs" / "A"), is_chat=False)
    tokenizer, chat = family_of(spec).load_text(QWEN_VL, spec)
    builder = PromptBuilder(tokenizer, chat, placeholder=spec.image_token_id)
    with pytest.raises(UnsupportedParameterError, match="base model"):
        Labels(builder, tokenizer, spec.eos_token_ids)


def test_the_demo_was_taught_plain_questions() -> None:
    assert decision_prompt_format(DEMO) == 2
    assert decision_prompt_format(QWEN_VL) == 1


@pytest.mark.parametrize("value", ['"2"', "3", "true", "0"])
def test_an_unknown_format_is_told(tmp_path: Path, value: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(f'{{"decision_prompt_format": {value}}}')
    with pytest.raises(ValueError, match="decision_prompt_format"):
        decision_prompt_format(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_no_label_begins_with_another(models: dict[str, Model], name: str) -> None:
    labels = models[name].labels
    texts = [["1", "one"], ["10"], ["red"], ["red circle", "Red"], ["10"], ["red."]]
    sequences = labels.sequences(texts)
    for ids in sequences:
        assert not any(other != ids and other[: len(ids)] == ids for other in sequences)
    assert {index for indices in sequences.values() for index in indices} == set(range(6))
    assert sequences[labels.token_ids("10")] == [1, 4]
    assert sequences[labels.token_ids("red.")] == [5]
    assert (*labels.token_ids("1"), models[name].end) in sequences


@pytest.mark.parametrize("name", FORMATS)
def test_names_in_the_input_tell_apart_who_said_what(models: dict[str, Model], name: str) -> None:
    def written(*authors: str) -> str:
        messages = (
            ChatMessage(role=Role.USER, parts=(TextPart(text=f"word{i}"),), name=author)
            for i, author in enumerate(authors)
        )
        request = DecisionRequest(
            evidence=ChatRequest(request_id="r", model="m", messages=tuple(messages)),
            questions=(
                Question(
                    name=None, kind=QuestionKind.PREDICATE, instructions=(TextPart(text="q"),)
                ),
            ),
        )
        prompts = models[name].decisions.build(request, ())
        [question] = prompts.questions
        ids = (*prompts.evidence.token_ids, *question.token_ids)
        return models[name].tokenizer.decode(ids, skip_special_tokens=False)

    text = written("Ann", "Bob")
    places = [text.index(word) for word in ("Ann", "word0", "Bob", "word1")]
    assert places == sorted(places)
    assert written("user", "user") == written("", "")


def rotated(question: str, *, evidence: str, count: int = 4) -> DecisionRequest:
    """Questions in eight orders of their options."""
    options = tuple(Option(value=f"option {index}") for index in range(8))
    asked = Question(
        name=None,
        kind=QuestionKind.CHOICE,
        instructions=(TextPart(text=question),),
        options=options,
        field="spec.questions[0]",
    )
    message = ChatMessage(role=Role.USER, parts=(TextPart(text=evidence),))
    return DecisionRequest(
        evidence=ChatRequest(request_id="r", model="m", messages=(message,)),
        questions=(asked,) * count,
        prompt_format=1,
        rotations=8,
    )


def test_questions_that_are_written_with_the_input_are_built_in_steps_and_share_it(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["demo"]
    builder = model.decisions
    built: list[int] = []
    build = model.builder.build

    def counted(*arguments: Any) -> Any:
        built.append(1)
        return build(*arguments)

    monkeypatch.setattr(model.builder, "build", counted)
    request = rotated("What does <|im_end|> mean?", evidence="evidence " * 4000)
    in_steps: list[int] = []
    prompts = None
    steps = builder.steps(request, ())
    while prompts is None:
        built.clear()
        prompts = next(steps)
        in_steps.append(len(built))
    assert max(in_steps) == 1
    assert sum(in_steps) == 1 + 4 * 8
    assert len(prompts.questions) == 4 * 8
    kept = sum(len(one.token_ids) + len(one.begin or ()) for one in prompts.questions)
    assert kept < len(prompts.evidence.token_ids)
    assert all(one.whole is not None and not one.whole.token_ids for one in prompts.questions)


def test_questions_with_the_same_letters_share_their_labels(models: dict[str, Model]) -> None:
    builder = models["demo"].decisions
    questions = builder.build(rotated("Which?", evidence="A text."), ()).questions
    assert len({id(one.labels) for one in questions}) == 8
    alone = builder.build(rotated("Which?", evidence="A text.", count=1), ()).questions
    assert [one.labels for one in questions] == [one.labels for one in alone] * 4


def test_questions_have_a_limit_together(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = models["demo"].decisions
    request = rotated("Which?", evidence="A text.")
    total = sum(len(one.token_ids) for one in builder.build(request, ()).questions)
    monkeypatch.setattr(prompts_module, "MAX_QUESTION_TOKENS", total)
    builder.build(request, ())
    monkeypatch.setattr(prompts_module, "MAX_QUESTION_TOKENS", total - 1)
    with pytest.raises(InvalidArgumentError, match=f"more than {total - 1} tokens") as caught:
        builder.build(request, ())
    assert caught.value.field == "spec.questions"


def test_short_questions_share_a_step(models: dict[str, Model]) -> None:
    steps = models["demo"].decisions.steps(rotated("Which?", evidence="A text."), ())
    assert next(steps) is not None


@pytest.mark.parametrize("number", PROMPT_FORMATS)
def test_a_question_that_cannot_fit_is_not_tokenised(
    models: dict[str, Model], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["demo"]
    builder, encode = model.decisions, model.tokenizer.encode_plain
    lengths: list[int] = []

    def measured(text: str) -> list[int]:
        lengths.append(len(text))
        return encode(text)

    monkeypatch.setattr(model.tokenizer, "encode_plain", measured)
    request = rotated("word " * 20_000, evidence="A text.", count=1)
    request = dataclasses.replace(request, prompt_format=number)
    with pytest.raises(ContextLengthError, match=r"at least 2[45]... tokens") as caught:
        list(builder.steps(request, (), 20_000, lambda text: len(text) // 4))
    assert caught.value.field == "spec.questions[0]"
    assert max(lengths) < 1000
    [asked] = request.questions
    options = (Option(value="long " * 20_000), Option(value="short"))
    longer = dataclasses.replace(asked, instructions=(TextPart(text="?"),), options=options)
    request = dataclasses.replace(request, questions=(longer,))
    with pytest.raises(ServiceError) as refused:
        list(builder.steps(request, (), 20_000, lambda text: len(text) // 4))
    assert refused.value.field == "spec.questions[0]"
    assert max(lengths) < 1000


LONG_OPTION = "\U00020000" * 500  # of 2,000 tokens


def test_options_behind_one_that_is_too_long_are_not_tokenised(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["demo"]
    builder, encode = model.decisions, model.tokenizer.encode_plain
    texts: list[str] = []

    def noted(text: str) -> list[int]:
        texts.append(text)
        return encode(text)

    monkeypatch.setattr(model.tokenizer, "encode_plain", noted)
    options = tuple(Option(value=LONG_OPTION + str(index)) for index in range(20))
    [asked] = rotated("Which?", evidence="A text.", count=1).questions
    asked = dataclasses.replace(asked, options=options)
    request = dataclasses.replace(
        rotated("?", evidence="A text."), questions=(asked,), prompt_format=2
    )
    with pytest.raises(InvalidArgumentError, match=r"has [12]\d\d\d tokens"):
        builder.build(request, ())
    assert sum(len(text) > 400 for text in texts) == 1


def test_labels_take_memory_by_their_length_alone(models: dict[str, Model]) -> None:
    labels = models["demo"].labels
    texts = [[LONG_OPTION + end] for end in "ab"]
    tracemalloc.start()
    try:
        assert len(labels.sequences(texts)) == 2
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20  # the beginnings of 2 x 2,000 tokens are 15 MiB
