"""The families of models that can be served.

Owns what a family's configuration files do not say: the settings that its own code fixes. Must not know torch,
checkpoints or requests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Settings that all checkpoints of a family share.

    Attributes:
        name: What `GetModel` tells; `model_type` in config.json.
        qk_norm: Queries and keys are normalised per head.
        mrope_interleaved: The axes of M-RoPE alternate from frequency to frequency; else they are chunks.
    """

    name: str
    qk_norm: bool
    mrope_interleaved: bool


FAMILIES = {
    family.name: family
    for family in (Family(name="qwen3_vl", qk_norm=True, mrope_interleaved=True),)
}

REFUSALS = {
    "qwen3_vl_moe": "Qwen3-VL with a mixture of experts is not supported, only the dense models are",
}
"""Why relatives of the supported families are refused, by `model_type`."""
