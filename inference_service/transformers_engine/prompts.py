"""Prepares prompts with the model's own processor: expands media, tokenises text, makes the tensors of the model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import hashlib
from itertools import groupby
import logging
from typing import Any, Final

import numpy as np
from PIL import Image
import torch
from torch import Tensor

from inference_service.engine.sequence import Sequence as EngineSequence
from inference_service.engine_protocol.messages import (
    MediaLayout,
    PromptLayout,
    PromptMedia,
    PromptSource,
)
from inference_service.errors import InvalidArgumentError, ServiceError
from inference_service.transformers_engine.guarded import GuardedTokenizer
from inference_service.transformers_engine.library import ids_of


_KEPT: Final = 16
_KEPT_BYTES: Final = 256 * 2**20
"""A prompt is prepared when its tokens are counted and computed soon after: it need not be prepared again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt for the model.

    Attributes:
        inputs: The arguments of `generate`, with a batch of one.
        layout: What the front is told.
    """

    inputs: Mapping[str, Tensor]
    layout: PromptLayout

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.inputs.values())


class PromptMaker:
    """Prepares the prompts of one model, and keeps the last ones."""

    def __init__(self, processor: Any, config: Any) -> None:
        processor.tokenizer = GuardedTokenizer(processor.tokenizer)
        self._processor = processor
        self._ids = {kind: ids_of(processor, config, kind) for kind in ("image", "video")}
        self._kept: OrderedDict[bytes, PreparedPrompt] = OrderedDict()
        self._put: list[str] = []
        if hasattr(processor, "_process_images"):
            processor._process_images = self._noting(processor._process_images)  # noqa: SLF001 - its only place

    def _noting(self, process: Callable[..., tuple[Any, list[str]]]) -> Callable[..., Any]:
        """What a processor makes of images, noting the texts that it puts in their place."""

        def processed(images: Any, **options: Any) -> tuple[Any, list[str]]:
            made, self._put = process(images, **options)
            return made, self._put

        return processed

    def prepare(self, source: PromptSource, pixels: memoryview | bytes) -> PreparedPrompt:
        """Prepares a prompt.

        Args:
            source: The prompt.
            pixels: RGB uint8 of its media.

        Raises:
            InvalidArgumentError: The pixels do not match, or the processor refuses the prompt.
        """
        view = memoryview(pixels).cast("B")
        if any(media.pixel_offset + media.pixel_bytes > len(view) for media in source.media):
            raise InvalidArgumentError("The size of an image does not match its pixels.")
        key = _key(source)
        prepared = self._kept.pop(key, None)
        if prepared is None:
            prepared = self._of_text(source, view) if source.text else _of_ids(source.token_ids)
        self._kept[key] = prepared
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return prepared

    def inputs_of(
        self, sequence: EngineSequence, pixels: memoryview | bytes
    ) -> Mapping[str, Tensor]:
        """The inputs of the model for a sequence: its request's prompt, with the text of a probe.

        Raises:
            InvalidArgumentError: The prompt is refused, or is another than that of the request.
        """
        request = sequence.request
        source = request.source or PromptSource(token_ids=request.prompt_token_ids)
        prepared = self.prepare(source, pixels)
        if prepared.layout.token_ids != request.prompt_token_ids:
            raise InvalidArgumentError("The prompt does not match its source.")
        inputs = prepared.inputs
        added = sequence.token_ids[inputs["input_ids"].shape[1] : sequence.num_prompt_tokens]
        if not added:
            return inputs
        ids = torch.tensor([added], dtype=torch.int64)
        fill = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        fill |= {n: torch.zeros_like(ids) for n in ("mm_token_type_ids", "token_type_ids")}
        return {
            name: torch.cat([value, fill[name].to(value.dtype)], dim=1) if name in fill else value
            for name, value in inputs.items()
        }

    @property
    def _kept_bytes(self) -> int:
        return sum(prepared.num_bytes for prepared in self._kept.values())

    def _of_text(self, source: PromptSource, pixels: memoryview) -> PreparedPrompt:
        try:
            inputs = self._process(source, pixels)
            return PreparedPrompt(inputs, self._layout(source, inputs))
        except ServiceError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError, StopIteration):
            # Its text may quote the prompt, and is of no use to callers.
            logger.warning("the processor refused a prompt", exc_info=True)
            raise InvalidArgumentError(
                "The model's processor refuses this prompt: check the number and the sizes of its images and videos."
            ) from None

    def _process(self, source: PromptSource, pixels: memoryview) -> dict[str, Tensor]:
        self._put = []
        self._processor.tokenizer.reads_marks = source.is_guarded
        options: dict[str, Any] = {}
        images = [_image(media, pixels) for media in source.media if media.fps is None]
        videos = [media for media in source.media if media.fps is not None]
        if images:
            options["images"] = images
        if videos:
            options |= _video_options(videos, pixels)
        bos = self._processor.tokenizer.bos_token
        if bos and source.text.startswith(bos):  # as `apply_chat_template` does
            options["add_special_tokens"] = False
        made = self._processor(text=[source.text], return_tensors="pt", **options)
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def _layout(self, source: PromptSource, inputs: Mapping[str, Tensor]) -> PromptLayout:
        token_ids = inputs["input_ids"][0].tolist()
        layouts: dict[bool, list[MediaLayout]] = {}
        for is_video in (False, True):
            some = [media for media in source.media if (media.fps is not None) is is_video]
            layouts[is_video] = self._layouts(
                some, token_ids, inputs, "video" if is_video else "image"
            )
        order = {is_video: iter(found) for is_video, found in layouts.items()}
        return PromptLayout(
            token_ids=tuple(token_ids),
            media=tuple(next(order[media.fps is not None]) for media in source.media),
        )

    def _layouts(
        self,
        media: Sequence[PromptMedia],
        token_ids: Sequence[int],
        inputs: Mapping[str, Tensor],
        kind: str,
    ) -> list[MediaLayout]:
        if not media:
            return []
        grids = inputs.get(f"{kind}_grid_thw")
        if grids is not None and len(grids) == len(media):
            preparer = getattr(self._processor, f"{kind}_processor")
            patch, merge = preparer.patch_size, preparer.merge_size
            return [
                MediaLayout(
                    height=rows * patch,
                    width=columns * patch,
                    num_tokens=t * rows * columns // merge**2,
                )
                for t, rows, columns in grids.tolist()
            ]
        told = self._told_counts() if kind == "image" else []
        counts = _counts(token_ids, self._ids[kind], len(media), told)
        sizes = _sizes(media, inputs)
        return [
            MediaLayout(height=height, width=width, num_tokens=count)
            for (height, width), count in zip(sizes, counts, strict=True)
        ]

    def _told_counts(self) -> list[int]:
        """Tokens of each image by the texts that the processor has put in the place of the images."""
        texts = self._processor.tokenizer.convert_ids_to_tokens(list(self._ids["image"]))
        return [sum(map(put.count, texts)) for put in self._put]


def _key(source: PromptSource) -> bytes:
    places = [(media.digest, media.fps, media.height, media.width) for media in source.media]
    asked = (source.text, source.token_ids, source.is_guarded, places)
    return hashlib.sha256(repr(asked).encode("utf-8", "surrogatepass")).digest()


def _of_ids(token_ids: Sequence[int]) -> PreparedPrompt:
    ids = torch.tensor([list(token_ids)], dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return PreparedPrompt(inputs, PromptLayout(token_ids=tuple(token_ids)))


def _image(media: PromptMedia, pixels: memoryview) -> Image.Image:
    part = bytes(pixels[media.pixel_offset : media.pixel_offset + media.pixel_bytes])
    return Image.frombytes("RGB", (media.width, media.height), part)


def _video_options(videos: Sequence[PromptMedia], pixels: memoryview) -> dict[str, Any]:
    """The frames as they are: they were chosen by the caller."""
    frames = [
        np.frombuffer(
            bytes(pixels[video.pixel_offset : video.pixel_offset + video.pixel_bytes]), np.uint8
        ).reshape(video.frames, video.height, video.width, 3)
        for video in videos
    ]
    details = [
        {
            "fps": video.fps,
            "total_num_frames": video.frames,
            "frames_indices": list(range(video.frames)),
            "duration": video.frames / (video.fps or 1.0),
            "height": video.height,
            "width": video.width,
        }
        for video in videos
    ]
    # Videos are [frames, channels, height, width] for the library.
    return {
        "videos": [clip.transpose(0, 3, 1, 2).copy() for clip in frames],
        "video_metadata": details,
        "do_sample_frames": False,
    }


def _counts(
    token_ids: Sequence[int], marks: Sequence[int], items: int, told: Sequence[int]
) -> list[int]:
    """Tokens of each of some images that stand in order.

    What the processor has told, if it adds up; or else runs of placeholders, or equal parts of all.
    """
    is_mark = [token_id in marks for token_id in token_ids]
    runs = [len(list(run)) for mark, run in groupby(is_mark) if mark]
    if len(told) == items and sum(told) == sum(runs):
        return list(told)
    if len(runs) == items:
        return runs
    share, rest = divmod(sum(runs), items)
    return [share + (index < rest) for index in range(items)]


def _sizes(media: Sequence[PromptMedia], inputs: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(height, width) of each image for the model, where it has one; else as decoded."""
    sizes, values = inputs.get("image_sizes"), inputs.get("pixel_values")
    if sizes is not None and tuple(sizes.shape) == (len(media), 2):
        return [(height, width) for height, width in sizes.tolist()]
    if values is not None and values.dim() == 4 and len(values) == len(media):
        return [(values.shape[-2], values.shape[-1])] * len(media)
    return [(one.height, one.width) for one in media]
