"""Prompts: where images stand, their keys, and that users cannot steer the template."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    ImagePart,
    Role,
    TextCompletionRequest,
    TextPart,
    VideoPart,
)
from inference_service.errors import (
    InvalidArgumentError,
    UnsupportedParameterError,
)
from inference_service.families.qwen_common.frame_times import FrameTimes
from inference_service.media.images import ProcessedImage
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.prompt import ChatAbilities, PromptBuilder, WrittenChat
from tests.support.qwen_text import ORDINARY, QWEN3_VL, SPECIAL, TEMPLATES, token_id


PAD, START, END = (
    token_id("<|image_pad|>"),
    token_id("<|vision_start|>"),
    token_id("<|vision_end|>"),
)
VIDEO_PAD = token_id("<|video_pad|>")
TIMES = FrameTimes(mark="<|vision_start|><|video_pad|><|vision_end|>", depth=2)


@pytest.fixture(scope="module")
def builder(tokenizer) -> PromptBuilder:
    return build(tokenizer)


def build(
    tokenizer,
    *,
    template: str = QWEN3_VL,
    revision: bytes = b"r",
    pad: int = PAD,
    times: FrameTimes | None = None,
):
    write_videos = times.write if times else None
    chat = JinjaChat(
        tokenizer,
        JinjaTemplate(template),
        placeholder=pad,
        video_placeholder=VIDEO_PAD,
        write_videos=write_videos,
    )
    return PromptBuilder(
        tokenizer, chat, placeholder=pad, video_placeholder=VIDEO_PAD, revision=revision
    )


def image(rows: int, columns: int, digest: bytes = b"d" * 32) -> ProcessedImage:
    return ProcessedImage(
        pixels=b"\0" * (rows * columns * 32 * 32 * 3),
        height=rows * 32,
        width=columns * 32,
        original_height=1,
        original_width=1,
        grid=(1, rows * 2, columns * 2),
        num_tokens=rows * columns,
        digest=digest,
    )


def ask(*parts: str | ImagePart | VideoPart, **options: Any) -> ChatRequest:
    content = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    message = ChatMessage(role=Role.USER, parts=content)
    return ChatRequest(request_id="r", model="m", messages=(message,), **options)


IMAGE = ImagePart(data=b"x")


def test_images_take_their_places(builder, tokenizer):
    images = [image(2, 3), image(1, 1), image(4, 2)]
    prompt = builder.build(ask(IMAGE, "a", IMAGE, IMAGE, "b"), images)
    offset = 0
    for span, shown in zip(prompt.images, images, strict=True):
        inside = prompt.token_ids[span.start : span.start + span.num_tokens]
        assert inside == (PAD,) * shown.num_tokens
        assert prompt.token_ids[span.start - 1] == START
        assert prompt.token_ids[span.start + span.num_tokens] == END
        assert (span.grid, span.height, span.width) == (shown.grid, shown.height, shown.width)
        assert span.pixel_offset == offset
        offset += len(shown.pixels)
    assert prompt.token_ids.count(PAD) == 6 + 1 + 8
    assert tokenizer.decode(prompt.token_ids) == "user\nab\nassistant\n"


def test_keys_differ_by_image_revision_and_salt(tokenizer, builder):
    def key(made: PromptBuilder, shown: ProcessedImage, **options: Any) -> bytes:
        return made.build(ask(IMAGE, **options), [shown]).images[0].key

    other = build(tokenizer, revision=b"s")
    salted = {"cache_salt": b"t"}
    keys = {
        key(builder, image(1, 1)),
        key(builder, image(1, 1, b"e" * 32)),
        key(builder, image(1, 1), **salted),
        key(other, image(1, 1)),
        key(build(tokenizer, revision=b"rt"), image(1, 1)),
    }
    assert len(keys) == 5
    assert {len(one) for one in keys} == {32}
    assert key(builder, image(1, 1)) == key(builder, image(1, 1))


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


def test_template_that_hides_images(tokenizer):
    blind = build(tokenizer, template="{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(UnsupportedParameterError, match="images in user messages"):
        blind.build(ask(IMAGE), [image(1, 1)])
    twice = build(tokenizer, template="<|image_pad|><|image_pad|>")
    with pytest.raises(UnsupportedParameterError):
        twice.build(ask(IMAGE), [image(1, 1)])


def test_forgotten_images(tokenizer):
    """Pixels are passed on whole: the spans of the others point behind the forgotten one's."""

    class Forgetful:
        abilities = ChatAbilities()

        def write(self, request):
            return WrittenChat(token_ids=[1, PAD, 2, PAD], dropped_images=1)

        def with_placeholders(self, token_ids, field):
            raise NotImplementedError

    images = [image(2, 3), image(1, 1), image(4, 2, b"e" * 32)]
    prompt = PromptBuilder(tokenizer, Forgetful(), placeholder=PAD).build(ask(), images)
    assert [span.num_tokens for span in prompt.images] == [1, 8]
    offsets = [len(images[0].pixels), len(images[0].pixels) + len(images[1].pixels)]
    assert [span.pixel_offset for span in prompt.images] == offsets


def test_placeholder_must_be_special(tokenizer):
    with pytest.raises(ValueError, match="image_token_id"):
        build(tokenizer, pad=5)


def clip(frames: int, fps: float = 2.0) -> VideoPart:
    return VideoPart(frames=(IMAGE,) * frames, fps=fps)


def piece(frames: int, times: int, time_step: float = 1.0) -> ProcessedImage:
    """A video, or a part of one, of one token each time."""
    return ProcessedImage(
        pixels=b"\0" * (frames * 32 * 32 * 3),
        height=32,
        width=32,
        original_height=1,
        original_width=1,
        grid=(times, 2, 2),
        num_tokens=times,
        digest=bytes([frames, times]) * 16,
        frames=frames,
        time_step=time_step,
        is_video=True,
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_videos_in_one_piece(tokenizer, template):
    builder = build(tokenizer, template=template)
    shown = [image(1, 2), piece(5, 3, time_step=0.5), image(1, 1)]
    prompt = builder.build(ask(IMAGE, clip(5), "x", IMAGE), shown)
    spans = prompt.images
    assert [(span.frames, span.time_step, span.num_tokens) for span in spans] == [
        (1, 1.0, 2),
        (5, 0.5, 3),
        (1, 1.0, 1),
    ]
    assert [span.pixel_offset for span in spans] == [0, 6144, 6144 + 5 * 3072]
    for span, pad in zip(spans, (PAD, VIDEO_PAD, PAD), strict=True):
        inside = prompt.token_ids[span.start : span.start + span.num_tokens]
        assert inside == (pad,) * span.num_tokens
        assert prompt.token_ids[span.start - 1] == START
        assert prompt.token_ids[span.start + span.num_tokens] == END


def test_videos_behind_their_times(tokenizer):
    """As Qwen3-VL was published: the time stands before the tokens that the template writes around a video."""
    builder = build(tokenizer, times=TIMES)
    shown = [piece(2, 1), piece(2, 1), piece(1, 1), image(1, 1), piece(2, 1)]
    prompt = builder.build(ask("What?", clip(5, fps=4), IMAGE, clip(2, fps=0.5)), shown)
    text = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    assert text == (
        f"<|im_start|>user\nWhat?<0.1 seconds>{video}<0.6 seconds>{video}<1.0 seconds>{video}"
        f"<|vision_start|><|image_pad|><|vision_end|><1.0 seconds>{video}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # Times are text of the prompt: tokenised together with what stands before them.
    ids = tokenizer.encode("What?<0.1 seconds>")
    assert any(prompt.token_ids[i : i + len(ids)] == tuple(ids) for i in range(9))


@pytest.mark.parametrize("frames", range(1, 8))
def test_times_as_transformers_has_them(frames):
    processor: Any = None  # the method does not read it
    wanted = Qwen3VLProcessor._calculate_timestamps(processor, list(range(frames)), 3.0, 2)
    written = TIMES.write(TIMES.mark, [clip(frames, fps=3.0)])
    assert written == "".join(f"<{time:.1f} seconds>{TIMES.mark}" for time in wanted)


def test_users_write_no_videos(tokenizer):
    builder = build(tokenizer, times=TIMES)
    prompt = builder.build(ask(TIMES.mark, clip(2)), [piece(2, 1)])
    assert prompt.token_ids.count(VIDEO_PAD) == 1
    assert TIMES.mark in tokenizer.decode(prompt.token_ids)


def test_a_template_that_hides_or_exchanges(tokenizer):
    blind = "{% for m in messages %}{{ m.role }}{% endfor %}"
    for template, times in ((blind, None), (blind, TIMES), ("<|image_pad|>", None)):
        with pytest.raises(UnsupportedParameterError):
            build(tokenizer, template=template, times=times).build(ask(clip(2)), [piece(2, 1)])


def test_text_completions_have_no_videos(tokenizer):
    request = TextCompletionRequest(
        request_id="r", model="m", prompt="<|video_pad|>", images=(IMAGE,)
    )
    with pytest.raises(InvalidArgumentError):
        build(tokenizer).build(request, [image(1, 1)])
