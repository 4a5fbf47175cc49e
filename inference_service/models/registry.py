"""The families of models that can be served.

Owns the list. Must not know what distinguishes a family (its own module does), torch, checkpoints or requests.
"""

from __future__ import annotations

from inference_service.models.families import glm_4v, qwen2_5_vl, qwen2_vl, qwen3_vl, qwen_vl


FAMILIES = {
    family.name: family
    for family in (
        qwen_vl.FAMILY,
        qwen2_vl.FAMILY,
        qwen2_5_vl.FAMILY,
        qwen3_vl.FAMILY,
        glm_4v.FAMILY,
    )
}
"""By name."""

REFUSALS = {
    "qwen3_vl_moe": "Qwen3-VL with a mixture of experts is not supported, only the dense models are",
}
"""Why relatives of the supported families are refused, by `model_type`."""
