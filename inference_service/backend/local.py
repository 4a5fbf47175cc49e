"""The way of one request: admission, images, prompt, engine, events.

Owns the requests in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass, field
import time

from inference_service.backend.defaults import operator_defaults
from inference_service.backend.sampling import check_token_ids, effective_options, engine_params
from inference_service.backend.served_model import ServedModel
from inference_service.domain import (
    Event,
    ImageInfo,
    ImagePart,
    Media,
    Request,
    Started,
    TokenUsage,
    VideoPart,
)
from inference_service.engine_client.interface import Engine, EngineState
from inference_service.engine_protocol.messages import EngineRequest, FinishReason, SequenceOutput
from inference_service.errors import (
    ContextLengthError,
    DrainingError,
    EngineUnavailableError,
    ImageTooLargeError,
    InternalError,
    InvalidArgumentError,
    ModelLoadingError,
    OutOfMemoryError,
    QueueFullError,
    RequestIdInUseError,
    ServiceError,
    TooManyImagesError,
    UnsupportedParameterError,
)
from inference_service.media.decode import FrameSpec, ImageDecoder, ProcessedImage
from inference_service.media.fetch import MediaFetcher
from inference_service.media.geometry import pixel_budget
from inference_service.model_spec import BoxNotation
from inference_service.settings import ServiceSettings
from inference_service.text.output.answer import Answer
from inference_service.text.prompt import Prompt


_FETCHES_PER_WORKER = 8
_FRAMES_AT_ONCE = 8
_MAX_VIDEO_BYTES = 64 * 2**20
"""Files of all frames of a video; they are in memory together before the first is decoded."""

# Only the reason crosses the border to the engine; what the caller reads is written here.
_ENGINE_ERRORS: dict[str, Callable[[str], ServiceError]] = {
    "CONTEXT_LENGTH_EXCEEDED": lambda prompt: ContextLengthError(
        "The prompt does not fit the context window.", field=prompt
    ),
    "INVALID_ARGUMENT": lambda _: InvalidArgumentError("The engine refuses this request."),
    "IMAGE_TOO_LARGE": lambda prompt: ImageTooLargeError(
        "An image takes more tokens than the encoder holds.", field=prompt
    ),
    "GPU_OUT_OF_MEMORY": lambda _: OutOfMemoryError(
        "The device had no memory left for this request.", retry_after_s=1.0
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request whose images are decoded and whose prompt is tokenised."""

    prompt: Prompt
    images: tuple[ProcessedImage, ...]
    infos: tuple[ImageInfo, ...]
    usage: TokenUsage


@dataclass(slots=True)
class _InFlight:
    """A request that the engine may be working on.

    Attributes:
        caller: Who may abort it; opaque.
        sequence_ids: Its sequences, once the engine knows them.
        aborted: Somebody did.
    """

    caller: str
    sequence_ids: list[str] = field(default_factory=list)
    aborted: bool = False


_News = asyncio.Queue[tuple[int, SequenceOutput | Exception]]


class Completions:
    """Answers requests through one engine."""

    def __init__(
        self,
        settings: ServiceSettings,
        model: ServedModel,
        engine: Engine,
        fetcher: MediaFetcher,
        decoder: ImageDecoder,
    ) -> None:
        self.model = model
        self.engine = engine
        self._settings = settings
        self._defaults = operator_defaults(settings).over(model.defaults)
        self._fetcher = fetcher
        self._decoder = decoder
        # Bounds the memory of files that are fetched but not decoded yet.
        self._images_at_once = asyncio.Semaphore(settings.media_workers * _FETCHES_PER_WORKER)
        self._in_flight: dict[str, _InFlight] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return len(self._in_flight)

    async def wait_idle(self) -> None:
        """Returns when no request is in flight."""
        await self._idle.wait()

    async def prepare(self, request: Request) -> Prepared:
        """Fetches, decodes and resizes the images and tokenises the prompt.

        Raises:
            ServiceError: An image or the prompt is wrong; the error names the field.
        """
        media = request.media
        most = self.model.spec.image_policy.max_images
        if most is not None and len(media) > most:
            raise TooManyImagesError(
                f"The request has {len(media)} images; the model reads at most {most}.",
                field=request.prompt_field,
            )
        tasks = [asyncio.ensure_future(self._seen(part, request)) for part in media]
        try:
            seen = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        for pieces, part in zip(seen, media, strict=True):
            _check_tokens(pieces, part, self._settings.encoder_cache_tokens)
        images = tuple(piece for pieces in seen for piece in pieces)
        # Rendering and tokenising a long prompt takes milliseconds: not on the loop (CVE-2025-62426).
        prompt = await asyncio.to_thread(self.model.prompts.build, request, images)
        seen_tokens = sum(image.num_tokens for image in prompt.images)
        video_tokens = sum(p.num_tokens for p in images if p.is_video)
        return Prepared(
            prompt=prompt,
            images=images,
            infos=tuple(
                _info(pieces[0], part)
                for pieces, part in zip(seen, media, strict=True)
                if isinstance(part, ImagePart)
            ),
            usage=TokenUsage(
                prompt_tokens=len(prompt.token_ids),
                image_tokens=seen_tokens - video_tokens,
                video_tokens=video_tokens,
            ),
        )

    async def count(self, request: Request, caller: str) -> Prepared:
        """What `prepare` gives, for a request that is not answered; it takes a place in the queue all the same.

        Raises:
            ServiceError: The request ended with an error.
        """
        with self._admit(request, caller):
            return await self.prepare(request)

    async def answer(self, request: Request, caller: str) -> AsyncGenerator[Event, None]:
        """Gives the events of a request; closing the iterator aborts what is under way.

        Args:
            request: What is asked.
            caller: Whose request it is; see `abort`.

        Raises:
            ServiceError: The request ended with an error.
        """
        with self._admit(request, caller) as flight:
            check_token_ids(request, self.model.spec.decoder.vocab_size)
            self._check_grounding(request)
            window = self._context_window()
            prepared = await self.prepare(request)
            options = effective_options(
                request,
                self._defaults,
                prompt_tokens=prepared.usage.prompt_tokens,
                max_model_len=window,
            )
            yield Started(
                request_id=request.request_id,
                created=int(time.time()),
                sampling=options,
                stop_strings=request.stop_strings,
                stop_token_ids=request.stop_token_ids,
                include_stop_string=request.include_stop_string,
                n=request.n,
                usage=prepared.usage,
                images=prepared.infos,
                prompt_token_ids=(
                    prepared.prompt.token_ids if request.return_prompt_token_ids else ()
                ),
                prompt_text=self._prompt_text(prepared) if request.return_prompt_text else "",
            )
            jobs = [
                EngineRequest(
                    sequence_id=f"{request.request_id}#{index}",
                    prompt_token_ids=prepared.prompt.token_ids,
                    images=prepared.prompt.images,
                    cache_salt=request.cache_salt,
                    sampling=engine_params(
                        options,
                        request,
                        choice_index=index,
                        eos_token_ids=self.model.spec.eos_token_ids,
                    ),
                )
                for index in range(request.n)
            ]
            flight.sequence_ids = [job.sequence_id for job in jobs]
            async with contextlib.aclosing(self._run(request, prepared, jobs, flight)) as events:
                async for event in events:
                    yield event

    async def abort(self, request_id: str, caller: str | None = None) -> bool:
        """Ends a request in flight; its answers finish as aborted.

        Args:
            request_id: The request.
            caller: Who wants it; None = an operator, who may end anybody's.

        Returns:
            False if no such request of the caller's is in flight.
        """
        flight = self._in_flight.get(request_id)
        if flight is None or caller not in (None, flight.caller):
            return False
        flight.aborted = True
        for sequence_id in flight.sequence_ids:
            await self.engine.abort(sequence_id)
        return True

    @contextlib.contextmanager
    def _admit(self, request: Request, caller: str) -> Iterator[_InFlight]:
        """Takes a place among the requests in flight."""
        if self.draining:
            raise DrainingError("The service is shutting down.", retry_after_s=5.0)
        if request.request_id in self._in_flight:
            raise RequestIdInUseError(
                "A request with this id is in flight.", field="spec.request_id"
            )
        if len(self._in_flight) >= self._settings.max_queue:
            raise QueueFullError("Too many requests are in flight.", retry_after_s=1.0)
        flight = self._in_flight[request.request_id] = _InFlight(caller)
        self._idle.clear()
        try:
            yield flight
        finally:
            del self._in_flight[request.request_id]
            if not self._in_flight:
                self._idle.set()

    def _check_grounding(self, request: Request) -> None:
        if request.grounding and self.model.box_notation is BoxNotation.NONE:
            raise UnsupportedParameterError(
                "This model names no boxes.", field="spec.response.grounding"
            )

    def _context_window(self) -> int:
        """The context window of the engine, which is smaller than the model's where memory is short."""
        state, ready = self.engine.state, self.engine.ready
        if state is EngineState.READY and ready is not None:
            return ready.max_model_len
        if state is EngineState.STARTING:
            raise ModelLoadingError("The model is being loaded.", retry_after_s=5.0)
        if state is EngineState.RESTARTING:
            raise EngineUnavailableError("The engine is being started again.", retry_after_s=2.0)
        raise EngineUnavailableError("The engine has failed.")

    def _prompt_text(self, prepared: Prepared) -> str:
        return self.model.tokenizer.decode(prepared.prompt.token_ids, skip_special_tokens=False)

    async def _seen(self, part: Media, request: Request) -> tuple[ProcessedImage, ...]:
        if isinstance(part, VideoPart):
            return await self._video(part)
        return (await self._image(part, request),)

    async def _video(self, part: VideoPart) -> tuple[ProcessedImage, ...]:
        spec = self.model.spec
        if spec.video is None:
            raise UnsupportedParameterError("This model reads no videos.", field=part.field)
        files: list[bytes] = []
        for start in range(0, len(part.frames), _FRAMES_AT_ONCE):
            some = part.frames[start : start + _FRAMES_AT_ONCE]
            files += await asyncio.gather(*map(self._file, some))
            if sum(map(len, files)) > _MAX_VIDEO_BYTES:
                raise ImageTooLargeError(
                    "The frames of the video have more bytes than allowed.",
                    field=part.field,
                    metadata={"max_bytes": str(_MAX_VIDEO_BYTES)},
                )
        fields = [frame.field for frame in part.frames]
        frame_spec = FrameSpec(policy=spec.image_policy, video=spec.video, fps=part.fps)
        async with self._images_at_once:
            return await self._decoder.decode_video(files, fields, frame_spec)

    async def _file(self, part: ImagePart) -> bytes:
        """The file of one frame."""
        if part.data is not None:
            return part.data
        async with self._images_at_once:
            return await self._fetcher.fetch(part.uri or "", field=part.field)

    async def _image(self, part: ImagePart, request: Request) -> ProcessedImage:
        policy = self.model.spec.image_policy
        least, most = pixel_budget(
            policy,
            part.detail,
            request.min_pixels if part.min_pixels is None else part.min_pixels,
            request.max_pixels if part.max_pixels is None else part.max_pixels,
            field=part.field,
        )
        async with self._images_at_once:
            data = part.data
            if data is None:
                data = await self._fetcher.fetch(part.uri or "", field=part.field)
            return await self._decoder.decode(
                data, policy=policy, min_pixels=least, max_pixels=most, field=part.field
            )

    async def _run(
        self,
        request: Request,
        prepared: Prepared,
        jobs: list[EngineRequest],
        flight: _InFlight,
    ) -> AsyncGenerator[Event, None]:
        """Runs the sequences of a request side by side and merges their events."""
        model = self.model
        answers = [
            Answer(index, request, model.tokenizer, model.box_notation, prepared.infos)
            for index in range(len(jobs))
        ]
        news: _News = asyncio.Queue(len(jobs))
        pixels = [image.pixels for image in prepared.images]

        tasks = [
            asyncio.create_task(self._pump(index, job, pixels, flight, news))
            for index, job in enumerate(jobs)
        ]
        cached = 0
        try:
            while not all(answer.finished for answer in answers):
                index, item = await news.get()
                output = _output_or_raise(item, request)
                if answers[index].finished:
                    continue  # said behind a stop string
                if index == 0 and output.num_cached_tokens is not None:
                    cached = output.num_cached_tokens
                for event in answers[index].push(output):
                    yield event
                if answers[index].finished:
                    tasks[index].cancel()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        yield dataclasses.replace(
            prepared.usage,
            cached_tokens=cached,
            completion_tokens=sum(answer.completion_tokens for answer in answers),
        )

    async def _pump(
        self, index: int, job: EngineRequest, pixels: list[bytes], flight: _InFlight, news: _News
    ) -> None:
        """Passes on the news of one sequence."""
        if flight.aborted:  # the engine never hears of it
            aborted = SequenceOutput(
                sequence_id=job.sequence_id, finish_reason=FinishReason.ABORTED
            )
            await news.put((index, aborted))
            return
        try:
            async with contextlib.aclosing(self.engine.generate(job, pixels)) as outputs:
                async for output in outputs:
                    await news.put((index, output))
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            await news.put((index, error))


def _output_or_raise(item: SequenceOutput | Exception, request: Request) -> SequenceOutput:
    if isinstance(item, Exception):
        raise item
    if item.finish_reason is FinishReason.ERROR:
        kind = _ENGINE_ERRORS.get(item.error)
        raise (
            kind(request.prompt_field)
            if kind
            else InternalError("The engine failed on this request.")
        )
    return item


def _check_tokens(pieces: Sequence[ProcessedImage], part: Media, most: int) -> None:
    """Refuses what the engine could never encode, with the figures that the engine's refusal cannot carry."""
    tokens = max(piece.num_tokens for piece in pieces)
    if tokens > most:
        what, advice = ("video", ", fewer frames") if pieces[0].is_video else ("image", "")
        raise ImageTooLargeError(
            f"The {what} takes {tokens} tokens, but the encoder takes {most} at most: send fewer pixels{advice}.",
            field=part.field,
            metadata={"tokens": str(tokens), "max_tokens": str(most)},
        )


def _info(image: ProcessedImage, part: ImagePart) -> ImageInfo:
    return ImageInfo(
        original_width=image.original_width,
        original_height=image.original_height,
        processed_width=image.width,
        processed_height=image.height,
        tokens=image.num_tokens,
        uuid=part.uuid,
    )
