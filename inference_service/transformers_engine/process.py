"""The process of the transformers backend: the engine's process with another core.

Started by `engine_client.child` as `python -P -m inference_service.transformers_engine.process`.
"""

from __future__ import annotations

import sys

from inference_service.engine import process
from inference_service.engine.loop import Core
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.transformers_engine.offline import stay_offline


def load_core(config: EngineConfig) -> Core:
    """Loads the model; imports torch and transformers."""
    from inference_service.transformers_engine.loading import load_core as load  # noqa: PLC0415 - seconds

    return load(config)


if __name__ == "__main__":
    stay_offline()
    sys.exit(process.main(core_factory=load_core))
