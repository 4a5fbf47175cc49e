"""Paths of well-known APIs, so that a client of one that is not served learns what is wrong.

Proxies take a 404 for a missing model: LiteLLM then withholds the whole model for a while.
"""

from __future__ import annotations

from typing import Final


_V1: Final = {
    "OpenAI Conversations API": ("conversations",),
    "Anthropic Text Completions API": ("complete",),
    "embeddings API": ("embeddings",),
    "reranking and scoring API": ("rerank", "score", "classify", "pooling"),
    "image generation API": ("images",),
    "audio API": ("audio",),
    "video generation API": ("videos",),
    "moderation API": ("moderations",),
    "files and batches API": ("files", "uploads", "batches", "vector_stores", "containers"),
    "fine-tuning API": ("fine_tuning", "fine-tunes", "adapters", "load_lora_adapter"),
    "OpenAI Assistants API": ("assistants", "threads", "chatkit", "agents", "skills"),
    "OpenAI Realtime API": ("realtime",),
    "OpenAI Evals API": ("evals", "graders"),
    "OpenAI administration API": ("organization", "projects", "usage"),
    "API of engines and edits": ("engines", "edits"),
    "fill-in-the-middle API": ("fim",),
    "OCR API": ("ocr",),
    "predictions API": ("predictions",),
}
"""The first part of a path after `/v1`."""

_ELSEWHERE: Final = {
    "Ollama API": tuple(
        f"/api/{name}"
        for name in (
            "blobs",
            "chat",
            "copy",
            "create",
            "delete",
            "embed",
            "embeddings",
            "generate",
            "ps",
            "pull",
            "push",
            "show",
            "tags",
            "version",
        )
    ),
    "LM Studio API": ("/api/v0",),
    "DashScope API": ("/api/v1/services", "/api/v1/tasks"),
    "Azure OpenAI API of deployments": ("/openai/deployments", "/deployments"),
    "Gemini API": ("/v1beta", "/v1beta1", "/v1alpha", "/upload/v1beta"),
    "Bedrock API": ("/model",),
    "Open Inference Protocol": ("/v2/models", "/v2/health", "/v2/repository", "/v2/version"),
    "Cohere API": ("/v2/chat", "/v2/embed", "/v2/rerank"),
    "native API of another inference server": (
        "/apply-template",
        "/classify",
        "/completion",
        "/embed",
        "/embedding",
        "/encode",
        "/generate",
        "/generate_stream",
        "/get_model_info",
        "/infill",
        "/inference/v1",
        "/invocations",
        "/pooling",
        "/props",
        "/rerank",
        "/score",
        "/slots",
    ),
}
"""The first parts of whole paths."""

_V1_NAMES: Final = {part: name for name, parts in _V1.items() for part in parts}
_PREFIXES: Final = tuple((path, name) for name, paths in _ELSEWHERE.items() for path in paths)
_BELOW: Final = {
    "/v1/chat/completions/": "API of stored completions",
    "/v1/completions/": "API of stored completions",
    "/v1/messages/batches": "Anthropic Message Batches API",
}
"""What may be below a path that is served."""
_GEMINI_VERBS: Final = (":generateContent", ":streamGenerateContent", ":countTokens")


def other_api_of(path: str) -> str | None:
    """The name of the API that a path belongs to; None = unknown.

    Args:
        path: The path, which is not served; paths below `/v1` may lack it, or have something before it.
    """
    for prefix, name in _PREFIXES:
        if path == prefix or path.startswith(f"{prefix}/"):
            return name
    if path.endswith(_GEMINI_VERBS):
        return "Gemini API"
    for prefix, name in _BELOW.items():
        if path.startswith(prefix):
            return name
    first = path.rpartition("/v1/")[2].removeprefix("/").partition("/")[0]
    return _V1_NAMES.get(first)
