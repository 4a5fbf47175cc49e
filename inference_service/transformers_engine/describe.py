"""Describes the model of a directory as transformers builds it: `python -m ... --model-dir DIR` prints `ModelFacts`.

A process of its own, so that neither the front nor `qwenvl check` loads the library. No weights are read.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
import resource
import sys

import msgspec

from inference_service.any_model.facts import CPU_S, ModelFacts
from inference_service.any_model.folder import check_configuration
from inference_service.model_spec import DTYPE_BYTES
from inference_service.transformers_engine import sizes
from inference_service.transformers_engine.offline import stay_offline


def describe(model_dir: Path) -> ModelFacts:
    """The facts of a model; imports transformers.

    Raises:
        ValueError: It cannot be served; the message is for the operator.
    """
    check_configuration(model_dir)  # also where this program is run by itself
    from inference_service.transformers_engine import library  # noqa: PLC0415 - seconds

    config = library.load_config(model_dir)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{config.model_type} is an encoder with a decoder, and only decoders are served"
        )
    model = library.new_meta_model(config)
    if not model.can_generate():
        raise ValueError(f"{type(model).__name__} does not generate text")
    processor = library.load_processor(model_dir, config)
    generation = library.load_generation_config(model_dir, config)
    lacking = library.lacking_for_videos(processor)
    dtype = sizes.checkpoint_dtype(config)
    assert dtype in DTYPE_BYTES
    return ModelFacts(
        model_type=config.model_type,
        architecture=type(model).__name__,
        vocab_size=model.get_output_embeddings().weight.shape[0],
        max_position_embeddings=sizes.context_tokens(config),
        eos_token_ids=sizes.end_tokens(generation, config),
        checkpoint_dtype=dtype,
        parts=sizes.count_parts(model),
        kv_values_per_token=sizes.kv_values_per_token(config),
        image_texts=library.texts_of(processor, "image"),
        video_texts=library.texts_of(processor, "video") if lacking == "" else (),
        lacking_for_videos=lacking or "",
        image_token_ids=library.ids_of(processor, config, "image"),
        video_token_ids=library.ids_of(processor, config, "video"),
    )


def main() -> int:
    """Entry point; an error is one line on standard error."""
    parser = argparse.ArgumentParser(prog="inference_service.transformers_engine.describe")
    parser.add_argument("--model-dir", type=Path, required=True)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    stay_offline()
    output = sys.stdout.buffer
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the library prints there, too
            facts = describe(args.model_dir)
    except Exception as error:  # noqa: BLE001 - the library raises anything for a strange configuration
        line = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"\n{line[:500]}\n")
        return 1
    output.write(msgspec.json.encode(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
