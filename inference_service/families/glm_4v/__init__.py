"""GLM-4V-9B."""

from __future__ import annotations

from inference_service.families.family import Family
from inference_service.families.glm_4v.positions import one_for_all_patches
from inference_service.families.glm_4v.spec import NAME, read, tensors


FAMILY = Family(
    name=NAME,
    model_type="chatglm",
    package=__name__,
    read=read,
    tensors=tensors,
    positions=one_for_all_patches,
    rebuilt=frozenset({"transformer.rotary_pos_emb.inv_freq"}),
)
