"""A tokenizer learned in a second and a network of a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
import torch

from demo_training.batches import Codec
from demo_training.network import Network
from demo_training.network_config import NetworkConfig
from demo_training.vocabulary import train_tokenizer


TINY = NetworkConfig(
    vocab_size=704,
    hidden_size=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=12,
    mlp_size=48,
    mrope_section=(2, 2, 2),
    vision_size=16,
    vision_layers=2,
    vision_heads=2,
    vision_mlp_size=24,
    position_side=5,
    deepstack=(0,),
)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(exchanges=300, chinese_size=300).save(str(file))
    return file


@pytest.fixture(scope="session")
def codec(tokenizer_file) -> Codec:
    return Codec(Tokenizer.from_file(str(tokenizer_file)))


@pytest.fixture
def network() -> Network:
    """Every weight random, so that each matters."""
    torch.manual_seed(5)
    made = Network(TINY)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "embed" in name:
                parameter.normal_(std=0.5)
    return made
