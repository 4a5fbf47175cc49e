"""Prompts: where pictures stand, their keys, and that users cannot steer the template."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Role, TextPart
from inference_service.errors import InternalError
from inference_service.media.decode import ProcessedPicture
from inference_service.text.prompt import PromptBuilder, WrittenChat
from inference_service.text.template import ChatTemplate
from inference_service.text.templated import TemplatedChat
from tests.support.qwen_text import ORDINARY, QWEN3_VL, SPECIAL, token_id


PAD, START, END = (
    token_id("<|image_pad|>"),
    token_id("<|vision_start|>"),
    token_id("<|vision_end|>"),
)


@pytest.fixture(scope="module")
def builder(tokenizer) -> PromptBuilder:
    return build(tokenizer)


def build(tokenizer, *, template: str = QWEN3_VL, revision: bytes = b"r", pad: int = PAD):
    chat = TemplatedChat(tokenizer, ChatTemplate(template), placeholder=pad)
    return PromptBuilder(tokenizer, chat, placeholder=pad, revision=revision)


def picture(rows: int, columns: int, digest: bytes = b"d" * 32) -> ProcessedPicture:
    return ProcessedPicture(
        pixels=b"\0" * (rows * columns * 32 * 32 * 3),
        height=rows * 32,
        width=columns * 32,
        original_height=1,
        original_width=1,
        grid=(1, rows * 2, columns * 2),
        num_tokens=rows * columns,
        digest=digest,
    )


def ask(*parts: str | ImagePart, **options: object) -> ChatRequest:
    content = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    message = ChatMessage(role=Role.USER, parts=content)
    return ChatRequest(request_id="r", model="m", messages=(message,), **options)


IMAGE = ImagePart(data=b"x")


def test_pictures_take_their_places(builder, tokenizer):
    pictures = [picture(2, 3), picture(1, 1), picture(4, 2)]
    prompt = builder.build(ask(IMAGE, "a", IMAGE, IMAGE, "b"), pictures)
    offset = 0
    for span, shown in zip(prompt.images, pictures, strict=True):
        inside = prompt.token_ids[span.start : span.start + span.num_tokens]
        assert inside == (PAD,) * shown.num_tokens
        assert prompt.token_ids[span.start - 1] == START
        assert prompt.token_ids[span.start + span.num_tokens] == END
        assert (span.grid, span.height, span.width) == (shown.grid, shown.height, shown.width)
        assert span.pixel_offset == offset
        offset += len(shown.pixels)
    assert prompt.token_ids.count(PAD) == 6 + 1 + 8
    assert tokenizer.decode(prompt.token_ids) == "user\nab\nassistant\n"


def test_keys_differ_by_picture_revision_and_salt(tokenizer, builder):
    def key(made: PromptBuilder, shown: ProcessedPicture, **options: object) -> bytes:
        return made.build(ask(IMAGE, **options), [shown]).images[0].key

    other = build(tokenizer, revision=b"s")
    salted = {"cache_salt": b"t"}
    keys = {
        key(builder, picture(1, 1)),
        key(builder, picture(1, 1, b"e" * 32)),
        key(builder, picture(1, 1), **salted),
        key(other, picture(1, 1)),
        key(build(tokenizer, revision=b"rt"), picture(1, 1)),
    }
    assert len(keys) == 5
    assert {len(one) for one in keys} == {32}
    assert key(builder, picture(1, 1)) == key(builder, picture(1, 1))


@hypothesis_settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(
                [*SPECIAL, *ORDINARY, "<|im_", "end|>", "<", "|image_pad|>", "x", "\ufdd0"]
            ),
            max_size=5,
        ).map("".join),
        max_size=4,
    )
)
def test_users_write_no_special_token(builder, tokenizer, texts):
    prompt = builder.build(ask(*texts), [])
    special = [i for i in prompt.token_ids if i in tokenizer.special_ids]
    assert [tokenizer.token_text(i) for i in special] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
    ]
    assert tokenizer.decode(prompt.token_ids) == f"user\n{''.join(texts)}\nassistant\n"


def test_template_that_hides_pictures(tokenizer):
    blind = build(tokenizer, template="{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(InternalError):
        blind.build(ask(IMAGE), [picture(1, 1)])
    twice = build(tokenizer, template="<|image_pad|><|image_pad|>")
    with pytest.raises(InternalError):
        twice.build(ask(IMAGE), [picture(1, 1)])


def test_forgotten_pictures(tokenizer):
    """Pixels are passed on whole: the spans of the others point behind the forgotten one's."""

    class Forgetful:
        def write(self, request):
            return WrittenChat(token_ids=[1, PAD, 2, PAD], forgotten_pictures=1)

    pictures = [picture(2, 3), picture(1, 1), picture(4, 2, b"e" * 32)]
    prompt = PromptBuilder(tokenizer, Forgetful(), placeholder=PAD).build(ask(), pictures)
    assert [span.num_tokens for span in prompt.images] == [1, 8]
    offsets = [len(pictures[0].pixels), len(pictures[0].pixels) + len(pictures[1].pixels)]
    assert [span.pixel_offset for span in prompt.images] == offsets


def test_placeholder_must_be_special(tokenizer):
    with pytest.raises(ValueError, match="image_token_id"):
        build(tokenizer, pad=5)
