"""The content of a message: text, refusals, images and videos, in the spellings of many clients.

Read without pydantic, because the dialects of OpenAI (Chat Completions and Responses), Qwen, DashScope, transformers,
LangChain and Anthropic overlap, and an error must name the field as the caller wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Final

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid, unsupported
from rest_adapter.json_text import shown
from rest_adapter.media import ImageSources
from rest_adapter.openai.image_parts import Image, read_image
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import wrong


_MAX_NAMES: Final = 8
_KINDS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "video": "video",
}
"""The kind of every served type of part."""
_KINDS_WITHOUT_TYPE: Final = ("text", "refusal", "image_url", "image", "video")
"""The fields by which a part without a type has one, as in DashScope's `{"image": URL}`."""
_UNSUPPORTED: Final = {
    "video_url": "send a part of type 'video' with the URLs of the video's frames",
    "input_video": "send a part of type 'video' with the URLs of the video's frames",
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "this service has no audio"),
    "image_file": "send the image itself or its URL",
    **dict.fromkeys(("file", "input_file", "document"), "send the text, or images of the pages"),
    **dict.fromkeys(
        ("tool_use", "tool_result", "tool_call"),
        "send calls in 'tool_calls', and results as messages with the role tool",
    ),
}
"""Known types of parts that are not served, with what to do instead."""
_THINKING: Final = frozenset(("thinking", "redacted_thinking", "reasoning"))
"""Types of parts in earlier answers that have no effect, like `reasoning_content`."""
_CONTENT: Final = frozenset(
    (*_KINDS_WITHOUT_TYPE, "video_url", "audio", "audio_url", "input_audio", "file", "base64")
)
"""Fields that hold content: a part of another kind must not have them, as they would be lost."""
_FOREIGN: Final = {
    "image": _CONTENT - {"image", "image_url", "base64"},
    **{kind: _CONTENT - {kind} for kind in ("text", "refusal", "video")},
}
_OF_VIDEO_FILES: Final = frozenset(
    (
        *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
        *("nframes", "min_frames", "max_frames", "video_start", "video_end", "detail"),
    )
)
_FRAME: Final = re.compile(r"video\.frames\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Text:
    """A text or an earlier refusal, and its path in the JSON."""

    text: str
    path: str
    is_refusal: bool = False

    def add_to(self, target: message_pb.Message, sources: ImageSources) -> None:
        """Appends the text to a message."""
        del sources
        target.parts.add(**{"refusal" if self.is_refusal else "text": self.text})

    def param(self, field: str) -> str:
        """The path in the JSON of the proto field `field` of the part."""
        del field
        return self.path


@dataclass(frozen=True, slots=True)
class Video:
    """A video as the URLs of its frames, their rate, and the paths of both in the JSON."""

    frames: tuple[object, ...]
    fps: float | None
    path: str
    fps_path: str

    def add_to(self, target: message_pb.Message, sources: ImageSources) -> None:
        """Appends the video to a message.

        Raises:
            ApiError: `sources` refuses the URL of a frame.
        """
        video = target.parts.add().video
        video.SetInParent()
        if self.fps is not None:
            video.fps = self.fps
        for index, url in enumerate(self.frames):
            sources.set(video.frames.add(), url, f"{self.path}[{index}]")

    def param(self, field: str) -> str:
        """The path in the JSON of the proto field `field` of the part."""
        if frame := _FRAME.match(field):
            return f"{self.path}[{frame[1]}]"
        return self.fps_path if field.endswith(".fps") else self.path


Content = Text | Image | Video


def read_content(
    content: object, path: str, *, is_answer: bool = False
) -> tuple[list[Content], list[str]]:
    """Reads the content of a message: text, a part, or a list of texts and parts.

    Args:
        content: The content, as in the JSON.
        path: Its path in the JSON.
        is_answer: It is an earlier answer, which may contain the model's reasoning.

    Returns:
        Its parts, and the paths of unknown fields.

    Raises:
        ApiError: It is something else, or a part is invalid or not supported; the error names the field.
    """
    if content is None:
        return [], []
    if isinstance(content, str | dict):
        return _read_all([(content, path)], is_answer)
    if isinstance(content, list):
        items = [(item, f"{path}[{index}]") for index, item in enumerate(content)]
        return _read_all(items, is_answer)
    raise wrong(path, content, "text or a list of parts")


def read_item(item: object, path: str) -> tuple[list[Content], list[str]]:
    """Reads one entry of a list of parts; otherwise as `read_content`."""
    return _read_all([(item, path)], is_answer=False)


def _read_all(items: list[tuple[object, str]], is_answer: bool) -> tuple[list[Content], list[str]]:
    parts: list[Content] = []
    unknown: list[str] = []
    for item, path in items:
        if isinstance(item, str):
            parts.append(Text(item, path))
            continue
        if not isinstance(item, dict):
            raise wrong(path, item, "text or an object")
        fields = Fields(item, path)
        kind = item.get("type")
        if is_answer and isinstance(kind, str) and kind in _THINKING:
            continue
        part, names = _read_part(fields, _kind_of(fields))
        parts.append(part)
        unknown += names
    return parts, unknown


def _kind_of(part: Fields) -> str:
    kind = part.values.get("type")
    if kind is None:
        names = [name for name in _KINDS_WITHOUT_TYPE if part.values.get(name) is not None]
        if len(names) != 1:
            part.refuse(_UNSUPPORTED, "it is not served")
            has = ", ".join(shown(name) for name in [*part.values][:_MAX_NAMES])
            raise invalid(
                f"'{part.path_of('type')}' is missing; it must be one of: {', '.join(_KINDS)}"
                f" (the part has {has or 'no fields'}).",
                part.path_of("type"),
            )
        kind = names[0]
    if not isinstance(kind, str) or kind not in (*_KINDS, *_UNSUPPORTED):
        raise wrong(part.path_of("type"), kind, f"one of: {', '.join(_KINDS)}")
    if kind in _UNSUPPORTED:
        raise unsupported(part.path, kind, _UNSUPPORTED[kind])
    return _KINDS[kind]


def _read_part(part: Fields, kind: str) -> tuple[Content, list[str]]:
    part.refuse(_FOREIGN[kind], "send it as a part of its own")
    if kind == "image":
        if part.has("file_id"):
            raise unsupported(part.path_of("file_id"), advice="send the image itself or its URL")
        return read_image(part)
    if kind == "video":
        return _read_video(part)
    value = part.values.get(kind)
    if kind not in part.values:
        raise invalid(f"'{part.path_of(kind)}' is missing.", part.path_of(kind), "MISSING_FIELD")
    if not isinstance(value, str):
        raise wrong(part.path_of(kind), value, "text")
    return Text(value, part.path_of(kind), kind == "refusal"), [*part.unknown((kind,))]


def _read_video(part: Fields) -> tuple[Video, list[str]]:
    part.refuse(_OF_VIDEO_FILES, "prepare the frames accordingly")
    frames = part.values.get("video")
    if not isinstance(frames, list):
        raise wrong(part.path_of("video"), frames, "a list of the URLs of the video's frames")
    for index, frame in enumerate(frames):
        if not isinstance(frame, str):
            raise wrong(f"{part.path_of('video')}[{index}]", frame, "the URL of a frame")
    rate = "sample_fps" if part.has("sample_fps") and not part.has("fps") else "fps"
    video = Video(tuple(frames), part.number(rate), part.path_of("video"), part.path_of(rate))
    return video, [*part.unknown(("video", "fps", "sample_fps"))]
