"""The settings of the inference service: names, defaults, limits, flags and environment variables."""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from inference_service.sampling import RANGES
from qwenvl.flags import Address, Endpoint, FlagSettings, Positive, Seconds, next_address
from qwenvl.observability import LogFormat, LogLevel


_MAX_NAME_CHARACTERS = 256


def _check_device(text: str) -> str:
    gpus = text.split(",")
    several = len(gpus) > 1 and all(re.fullmatch(r"cuda:\d+", gpu, re.ASCII) for gpu in gpus)
    if several and len(set(gpus)) < len(gpus):
        raise PydanticCustomError("device", "names the same GPU twice")
    if not several and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text, re.ASCII):
        raise PydanticCustomError(
            "device",
            "must be auto, cpu, cuda, cuda:N, or several GPUs such as cuda:0,cuda:1",
        )
    return text


def _sampling_default(name: str, otherwise: str = "", *, also: str | None = None) -> Any:
    """A flag for the default of a sampling setting, with that setting's range.

    Args:
        name: Name of the setting; the field is called `default_<name>`.
        otherwise: The default without the flag; empty = OpenAI's.
        also: A second name of the field.
    """
    limits = RANGES[name]
    return Field(
        None,
        ge=limits.minimum,
        le=limits.maximum,
        validation_alias=None if also is None else AliasChoices(f"default_{name}", also),
        description=f"{name} of requests that do not set it"
        + (otherwise and f"; none = {otherwise}"),
    )


def _after_grpc(address: Any, info: ValidationInfo) -> Any:
    """The admin address for `auto`; an invalid gRPC address has an error of its own."""
    grpc_address = info.data.get("grpc_address")
    if address != "auto" or grpc_address is None:
        return None if address == "auto" else address
    return next_address(grpc_address)


def _check_model_name(text: str) -> str:
    if not text.isprintable() or len(text) > _MAX_NAME_CHARACTERS:
        raise PydanticCustomError(
            "model_name",
            "a name must be printable text of at most {limit} characters",
            {"limit": _MAX_NAME_CHARACTERS},
        )
    return text


Parallel = Annotated[int, Field(ge=1, le=1024)]
"""A number of threads or processes, all of which are started."""
ModelName = Annotated[str, AfterValidator(_check_model_name)]
DeviceName = Annotated[str, AfterValidator(_check_device)]
AdminAddress = Annotated[Address | None, BeforeValidator(_after_grpc)]


class ServiceSettings(FlagSettings):
    """Settings of `inference-service`."""

    GROUPS: ClassVar[Mapping[str, str]] = {
        "model": "model",
        "addresses": "grpc_address",
        "device and memory": "dtype",
        "requests": "max_queue",
        "media": "allowed_media_domains",
        "access, shutdown and logs": "api_key_file",
    }
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "grpc_tls_cert_file": ("grpc_tls_key_file",),
        "grpc_tls_key_file": ("grpc_tls_cert_file",),
        "grpc_tls_client_ca_file": ("grpc_tls_cert_file", "grpc_tls_key_file"),
    }

    model: str | None = Field(
        None, description="model directory or hub id; none = the embedded demo model"
    )
    hub: Literal["modelscope", "huggingface"] = Field(
        "modelscope", description="hub that a hub id refers to"
    )
    backend: Literal["auto", "native", "transformers"] = Field(
        "auto",
        description="what computes the model: native = this project's engine; transformers = the library of that name,"
        " slow but for every model that it knows; auto = native where the family is supported, else transformers",
    )
    revision: str | None = Field(
        None,
        description="branch, tag or commit of the model's repository on the hub; none = its default branch",
    )
    served_model_name: tuple[ModelName, ...] = Field(
        (),
        description="names under which the model is served, the canonical name first; empty = derived from the model"
        " (demo model: qwen-vl-demo qwen-vl)",
    )
    grpc_address: Address = Field(
        "127.0.0.1:50051", description="address (host:port) of the gRPC API"
    )
    admin_address: AdminAddress = Field(
        "auto",
        validate_default=True,
        description="address (host:port) of the complete AdminService; auto = the port after that of the gRPC API,"
        " on 127.0.0.1; none = not served",
    )
    health_address: Address | None = Field(
        None,
        description="additional plaintext address (host:port) that serves grpc.health.v1 only; none = not served",
    )
    metrics_address: Address | None = Field(
        None,
        description="address (host:port) that serves GET /metrics for Prometheus, without a key; none = not served",
    )
    vllm_metric_names: bool = Field(
        False,
        description="also expose metrics under the names of vLLM, for gateways and autoscalers that read those",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="dtype of weights and KV cache; auto = the checkpoint's on a GPU; on a CPU bfloat16 if the"
        " checkpoint has it and it is measured at start to be faster, else float32",
    )
    device: DeviceName = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N; several GPUs (cuda:0,cuda:1) hold a model that is too large for one,"
        " and work one after the other",
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="int8 = on a CPU, the large weights of the language model in 8-bit integers: less memory,"
        " faster, and answers that differ; none = as dtype says",
    )
    gpu_kernels: Literal["auto", "off"] = Field(
        "auto",
        description="auto = on a GPU, the kernels that give the results of their torch references there; off = the"
        " references only, which are slower",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto",
        description="auto = on one GPU, decode steps are captured as CUDA graphs at start, where these give the results"
        " of the steps; off = every kernel is launched by itself, which is slower for small batches",
    )
    pipeline_depth: Annotated[int, Field(ge=0, le=1)] | None = Field(
        None,
        description="number of steps that the device computes while the next one is planned; none = 1 on a GPU, 0 on a"
        " CPU, where nothing runs beside",
    )
    max_model_len: Positive | None = Field(
        None,
        description="maximum length of prompt and answer in tokens; none = the model's context window",
    )
    max_num_seqs: Positive = Field(64, description="maximum number of sequences in one batch")
    max_num_batched_tokens: Positive = Field(
        2048, description="maximum number of tokens in one engine step"
    )
    max_decode_slowdown: float = Field(
        2.0,
        gt=1,
        le=1000,
        description="how many times longer an engine step may take, when it computes prompts or images beside answers"
        " in progress, than those answers alone",
    )
    kv_page_size: Positive = Field(16, description="tokens per page of the KV cache")
    num_kv_pages: Positive | None = Field(
        None, description="pages of the KV cache; none = computed from the available memory"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="fraction of the GPU's memory for weights and caches"
    )
    cpu_kv_cache_mib: Positive = Field(256, description="size of the KV cache on a CPU, in MiB")
    encoder_cache_tokens: Positive = Field(
        16384, description="maximum number of image tokens in the encoder cache"
    )
    enable_prefix_caching: bool = Field(
        True, description="reuse the KV pages of identical prompt prefixes"
    )
    cpu_threads: Parallel | None = Field(
        None,
        description="number of torch threads on a CPU; none = one per core, within the quota of the container",
    )
    engine_start_timeout_s: Seconds = Field(
        1200.0, description="maximum time to load the model, in seconds"
    )
    engine_stall_timeout_s: Seconds = Field(
        60.0,
        description="time without progress, even within a step, after which the engine is restarted, in seconds",
    )
    max_queue: Positive = Field(
        256, description="maximum number of requests in flight, including waiting requests"
    )
    max_requests_per_minute: Positive | None = Field(
        None, description="maximum number of requests of one API key in a minute; none = unlimited"
    )
    max_tokens_per_minute: Positive | None = Field(
        None,
        description="maximum number of tokens, of prompts and answers, of one API key in a minute; none = unlimited",
    )
    max_image_bytes_per_minute: Annotated[int, Field(ge=1, le=2**53)] | None = Field(
        None,
        description="maximum size of the processed pixels of one API key in a minute, in bytes; none = unlimited",
    )
    cache_per_key: bool = Field(
        True,
        description="share cached prompts and images only among requests with the same API key; off = among all",
    )
    default_max_tokens: int | None = _sampling_default(
        "max_tokens",
        "rest of the context, 16 for a text completion",
        also="max_tokens_default",
    )
    strict_max_tokens: bool = Field(
        False,
        description="refuse a request whose max_tokens exceeds the rest of the context window; off = lower it to that",
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
        False,
        description="max_tokens 1024 and temperature 0.7 where neither the request nor a flag sets them",
    )
    max_images: Positive = Field(
        8, description="maximum number of images and videos in one request"
    )
    max_video_frames: Positive = Field(128, description="maximum number of frames in one video")
    max_n: Positive = Field(4, description="maximum number of choices (n) in one request")
    request_timeout_s: Seconds = Field(
        600.0,
        description="maximum time of a request, in seconds; a client's deadline can only be earlier",
    )
    send_timeout_s: Seconds = Field(
        30.0,
        description="time for a client to take the next message of its answer, in seconds; then its request ends",
    )
    max_connection_age_s: Seconds = Field(
        3600.0,
        description="age at which a gRPC connection takes no new calls, in seconds; clients connect again",
    )
    message_budget_mib: Positive = Field(
        256,
        description="maximum size of the request messages in memory, in MiB; an incomplete one counts 32; and as much"
        " again of unsent answers, each counted twice (at least 192)",
    )
    history_window: Positive | None = Field(
        None,
        description="drop the oldest turns beyond this many tokens of history (Qwen-VL-Chat of 2023 only);"
        " none = prompts that are too long are refused",
    )
    allowed_media_domains: tuple[str, ...] = Field(
        (),
        description="fetch media from these hosts only: host, .domain (with its subdomains), *.domain (its subdomains"
        " only), public (any public host); with a port (host:port) also hosts that are not public; empty = public",
    )
    allow_local_media_path: str | None = Field(
        None, description="directory from which file:// URLs may be read; none = file:// is refused"
    )
    enable_media_fetch: bool = Field(
        True, description="fetch media from URLs; off = requests with URLs are refused"
    )
    media_proxy: str | None = Field(
        None,
        description="HTTP proxy (http://[user:password@]host:port) that all media are fetched through; none = direct",
    )
    media_ca_file: str | None = Field(
        None,
        description="PEM file of more certificate authorities for the hosts that --allowed-media-domains names, and for"
        " all hosts behind --media-proxy",
    )
    media_connect_timeout_s: Seconds = Field(
        2.0, description="timeout for connecting to a media host, in seconds"
    )
    media_timeout_s: Seconds = Field(
        10.0,
        validation_alias=AliasChoices("media_timeout_s", "media_total_timeout_s"),
        description="time until a host must have begun to send an image, including redirects, and over which its rate"
        " is measured then, in seconds",
    )
    media_min_kib_per_s: float = Field(
        8.0, ge=0, description="lowest rate at which a media host may send, in KiB per second"
    )
    media_buffer_mib: Positive = Field(
        512,
        description="maximum size of the fetched files in memory, in MiB; half of it is for the oldest request of each"
        " caller, of the other half one caller has three quarters at most, and the oldest of all goes on beyond it",
    )
    max_media_fetches: Positive = Field(
        256,
        description="maximum number of images that are fetched at a time; one host and one caller have half of them",
    )
    max_image_bytes: Positive = Field(
        20 * 2**20, description="maximum size of one encoded image, in bytes"
    )
    max_image_pixels: Positive = Field(
        50_000_000, description="maximum number of pixels of one image before resizing"
    )
    max_request_pixels: Positive = Field(
        400_000_000,
        description="maximum number of pixels of all images and frames of one request before resizing; equal frames"
        " of a video count once",
    )
    media_workers: Parallel = Field(
        2,
        description="number of processes that decode and resize images; of two or more, half decode only images that"
        " cost little",
    )
    decode_memory_mib: Positive = Field(
        1024, description="maximum memory of one of these processes, in MiB"
    )
    decode_timeout_s: Seconds = Field(
        20.0, description="maximum time to decode one image, in seconds"
    )
    request_decode_timeout_s: Seconds = Field(
        60.0, description="maximum time to decode all images of one request, in seconds"
    )
    pixel_budget_mib: Positive = Field(
        512,
        description="maximum size of the decoded pixels in transit to the engine, in MiB; an eighth of it is left to"
        " callers who have none there",
    )
    api_key_file: str | None = Field(
        None, description="file with one API key per line; none = no authentication"
    )
    grpc_tls_cert_file: str | None = Field(
        None,
        description="certificate of the gRPC API, in PEM, with those between it and its authority's; read again when it"
        " changes; none = plaintext",
    )
    grpc_tls_key_file: str | None = Field(
        None, description="private key of --grpc-tls-cert-file, in PEM"
    )
    grpc_tls_client_ca_file: str | None = Field(
        None,
        description="certificates of the authorities that sign those of clients, in PEM; none = clients need none",
    )
    drain_timeout_s: Seconds = Field(
        90.0, description="time for running requests to finish after SIGTERM, in seconds"
    )
    otlp_traces_endpoint: Endpoint | None = Field(
        None,
        description="where traces of the calls are sent, by OTLP over gRPC (http://host:port, or https://); needs the"
        " extra [tracing]; none = no traces",
    )
    log_level: LogLevel = Field("info", description="lowest level that is logged")
    log_format: LogFormat | None = Field(
        None, description="json or text; none = text on a terminal, JSON otherwise"
    )
