"""Exports a training state as a Hugging Face folder that any Qwen3-VL server can load.

python -m demo_training.export STATE TOKENIZER OUT_DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import shutil
import tempfile
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer
import torch

from demo_training.chat_format import CHAT_TEMPLATE
from demo_training.images import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH
from demo_training.network_config import NetworkConfig
from demo_training.vision_tower import FRAMES
from demo_training.vocabulary import SPECIAL_TOKENS, special_id


def model_config(network: NetworkConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json, with the keys of Qwen3-VL's."""
    end, pad = special_id(tokenizer, "<|im_end|>"), special_id(tokenizer, "<|endoftext|>")
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "float32",
        "image_token_id": special_id(tokenizer, "<|image_pad|>"),
        "video_token_id": special_id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": special_id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": special_id(tokenizer, "<|vision_end|>"),
        "eos_token_id": end,
        "pad_token_id": pad,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "dtype": "float32",
            "vocab_size": network.vocab_size,
            "hidden_size": network.hidden_size,
            "intermediate_size": network.mlp_size,
            "num_hidden_layers": network.layers,
            "num_attention_heads": network.heads,
            "num_key_value_heads": network.kv_heads,
            "head_dim": network.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": network.max_positions,
            "rope_theta": network.rope_theta,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": list(network.mrope_section),
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "use_cache": True,
            "eos_token_id": end,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": network.vision_layers,
            "hidden_size": network.vision_size,
            "intermediate_size": network.vision_mlp_size,
            "num_heads": network.vision_heads,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "num_position_embeddings": network.position_side**2,
            "out_hidden_size": network.hidden_size,
            "deepstack_visual_indexes": list(network.deepstack),
        },
    }


def tokenizer_config(network: NetworkConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json: Qwen2Tokenizer, and the chat template."""
    added = {
        str(number): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": network.max_positions,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: greedy decoding, two end tokens, and decisions by the plain questions it was taught."""
    end, pad = special_id(tokenizer, "<|im_end|>"), special_id(tokenizer, "<|endoftext|>")
    return {
        "decision_prompt_format": 2,
        "do_sample": False,
        "eos_token_id": [end, pad],
        "pad_token_id": pad,
    }


def preprocessor_config() -> dict[str, Any]:
    """preprocessor_config.json: Qwen3-VL's, with the pixel limits of this model."""
    return {
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }


def video_preprocessor_config() -> dict[str, Any]:
    """video_preprocessor_config.json: Qwen3-VL's."""
    images = preprocessor_config()
    del images["image_processor_type"]
    return images | {
        "size": {"shortest_edge": 4096, "longest_edge": 25165824},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }


def export(
    weights: dict[str, torch.Tensor], network: NetworkConfig, tokenizer_file: Path, out_dir: Path
) -> None:
    """Writes the folder; each file is replaced atomically.

    Args:
        weights: Parameters of `Network`, by name.
        network: Its sizes.
        tokenizer_file: tokenizer.json.
        out_dir: The folder; created if missing, existing files are replaced.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    documents = {
        "config.json": model_config(network, tokenizer),
        "generation_config.json": generation_config(tokenizer),
        "preprocessor_config.json": preprocessor_config(),
        "tokenizer_config.json": tokenizer_config(network, tokenizer),
        "video_preprocessor_config.json": video_preprocessor_config(),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    # On the same file system as the folder, so that renaming is atomic.
    with tempfile.TemporaryDirectory(dir=out_dir.parent) as held:
        made = Path(held)
        for name, document in documents.items():
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            (made / name).write_text(text, encoding="utf-8")
        shutil.copyfile(tokenizer_file, made / "tokenizer.json")
        stored = {name: tensor.float().contiguous() for name, tensor in weights.items()}
        save_file(stored, made / "model.safetensors", metadata={"format": "pt"})
        for file in sorted(made.iterdir()):
            file.chmod(0o644)
            file.replace(out_dir / file.name)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Write the demo checkpoint's folder.")
    parser.add_argument("state", type=Path, help="state.pt of the training")
    parser.add_argument("tokenizer", type=Path, help="tokenizer.json")
    parser.add_argument("out_dir", type=Path, help="folder to write")
    arguments = parser.parse_args()
    state = torch.load(arguments.state, map_location="cpu", weights_only=True)
    rows = len(state["average"]["model.language_model.embed_tokens.weight"])
    export(state["average"], NetworkConfig(vocab_size=rows), arguments.tokenizer, arguments.out_dir)
    print(f"{arguments.out_dir}: step {state['step']}")


if __name__ == "__main__":
    main()
