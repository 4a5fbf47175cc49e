"""Every setting of the inference service: name, default, limits, flag and environment variable."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field
from pydantic_core import PydanticCustomError

from inference_service.sampling import RANGES
from qwenvl.flags import FlagSettings
from qwenvl.observability import LogFormat, LogLevel


Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def _check_device(text: str) -> str:
    gpus = text.split(",")
    several = len(gpus) > 1 and all(re.fullmatch(r"cuda:\d+", gpu, re.ASCII) for gpu in gpus)
    if several and len(set(gpus)) < len(gpus):
        raise PydanticCustomError("device", "names a GPU twice")
    if not several and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text, re.ASCII):
        raise PydanticCustomError(
            "device",
            "write auto, cpu, cuda, cuda:N, or several GPUs and nothing else: cuda:0,cuda:1",
        )
    return text


def _sampling_default(name: str, otherwise: str = "") -> Any:
    """The flag for the default of a sampling setting, whose range it has.

    Args:
        name: Of the setting; the field is called `default_<name>`.
        otherwise: Whose default holds where the flag is not given; empty = OpenAI's.
    """
    limits = RANGES[name]
    return Field(
        None,
        ge=limits.minimum,
        le=limits.maximum,
        description=f"{name} where the request names none"
        + (otherwise and f"; none = {otherwise}"),
    )


DeviceName = Annotated[str, AfterValidator(_check_device)]


class ServiceSettings(FlagSettings):
    """Settings of `inference-service`."""

    model: str | None = Field(
        None, description="model directory or hub id, or absent for the demo model"
    )
    hub: Literal["modelscope", "huggingface"] = Field(
        "modelscope", description="where hub ids are looked up"
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of the hub's repository; none = its default"
    )
    served_model_name: tuple[str, ...] = Field(
        (),
        description="names the model answers to, the first is canonical; demo: qwen-vl-demo qwen-vl",
    )
    # addresses
    grpc_address: str = Field("127.0.0.1:50051", description="address of the gRPC service")
    admin_address: str | None = Field(
        "127.0.0.1:50052", description="address of the whole AdminService; none = closed"
    )
    health_address: str | None = Field(
        None, description="extra plaintext address for grpc.health.v1 only; none = closed"
    )
    # engine
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="dtype of weights and cache"
    )
    device: DeviceName = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N; where one GPU is too small several, slowly: cuda:0,cuda:1",
    )
    max_model_len: Positive | None = Field(
        None, description="context window in tokens; none = the model's own"
    )
    max_num_seqs: Positive = Field(64, description="most sequences in one batch")
    max_num_batched_tokens: Positive = Field(2048, description="token budget of one engine step")
    kv_page_size: Positive = Field(16, description="tokens of one KV page")
    num_kv_pages: Positive | None = Field(
        None, description="pages of the KV cache; none = from memory"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory for weights and caches"
    )
    cpu_kv_cache_mib: Positive = Field(256, description="KV cache on a CPU in MiB")
    encoder_cache_tokens: Positive = Field(
        16384, description="image tokens kept in the encoder cache"
    )
    enable_prefix_caching: bool = Field(True, description="reuse KV pages of equal prefixes")
    cpu_threads: Positive | None = Field(
        None, description="torch threads on a CPU; none = all cores"
    )
    engine_start_timeout_s: Seconds = Field(1200.0, description="longest time to load the model")
    engine_stall_timeout_s: Seconds = Field(
        60.0, description="kill an engine that shows no heartbeat for this long"
    )
    # admission and defaults
    max_queue: Positive = Field(256, description="most requests in flight, waiting ones included")
    max_tokens_default: Positive | None = Field(
        None,
        validation_alias=AliasChoices("max_tokens_default", "default_max_tokens"),
        description="answer length where the request names none; none = rest of the context, 16 for a text completion",
    )
    default_temperature: float | None = _sampling_default("temperature", "the model's")
    default_top_p: float | None = _sampling_default("top_p", "the model's")
    default_top_k: int | None = _sampling_default("top_k", "the model's")
    default_min_p: float | None = _sampling_default("min_p")
    default_repetition_penalty: float | None = _sampling_default(
        "repetition_penalty", "the model's"
    )
    default_presence_penalty: float | None = _sampling_default("presence_penalty")
    default_frequency_penalty: float | None = _sampling_default("frequency_penalty")
    tutorial_defaults: bool = Field(
        False, description="max_tokens 1024 and temperature 0.7 where neither request nor flag says"
    )
    max_images: Positive = Field(8, description="most images and videos of one request")
    max_video_frames: Positive = Field(128, description="most frames of one video")
    max_n: Positive = Field(4, description="most answers of one request")
    request_timeout_s: Seconds = Field(600.0, description="deadline of a request that brings none")
    history_window: Positive | None = Field(
        None,
        description="leave out the oldest turns beyond this many tokens of history (Qwen-VL of 2023 only);"
        " none = a prompt that is too long is refused",
    )
    # media
    allowed_media_domains: tuple[str, ...] = Field(
        (),
        description="fetch only from these hosts; host:port also permits a host that is not public",
    )
    allow_local_media_path: str | None = Field(
        None, description="directory from which file:// images may be read; none = refused"
    )
    enable_media_fetch: bool = Field(True, description="fetch images by URL at all")
    media_connect_timeout_s: Seconds = Field(2.0, description="time to connect to an image's host")
    media_total_timeout_s: Seconds = Field(
        10.0, description="time for one image, redirects included"
    )
    max_image_bytes: Positive = Field(20 * 2**20, description="most bytes of one encoded image")
    max_image_pixels: Positive = Field(50_000_000, description="most pixels of one image as sent")
    media_workers: Positive = Field(2, description="threads that decode and resize images")
    pixel_budget_mib: Positive = Field(
        512, description="most pixels on their way to the engine, in MiB"
    )
    # access and life
    api_key_file: str | None = Field(None, description="file with one key per line; none = open")
    drain_timeout_s: Seconds = Field(
        90.0, description="how long running requests may go on after SIGTERM"
    )
    log_level: LogLevel = Field("info", description="lowest level that is logged")
    log_format: LogFormat | None = Field(
        None, description="json or text; none = text on a terminal, JSON otherwise"
    )
