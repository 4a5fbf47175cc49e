"""The training network against transformers' Qwen3-VL and against the serving one."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from demo_training.batches import patch_grid
from demo_training.export import export
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    ImageSpan,
    SamplingParams,
)


CASES = [((128, 128), 1), ((160, 128), 1), ((96, 192), 2)]


@pytest.fixture
def folder(network, tokenizer_file, tmp_path):
    export(network.state_dict(), network.config, tokenizer_file, tmp_path / "model")
    return tmp_path / "model"


def random_images(number, size):
    """[1, number, N, 768] uint8."""
    rows, columns = patch_grid(size)
    generator = torch.Generator().manual_seed(3)
    shape = (1, number, rows * columns, 768)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@torch.no_grad()
def network_logits(network, codec, ids, images, size):
    tokens, positions = codec.padded([ids], size)
    pixels = images / 127.5 - 1
    hidden = network(tokens, positions, pixels, patch_grid(size), tokens == codec.image)
    return network.logits(hidden)[0]


@pytest.mark.parametrize(("size", "number"), CASES)
def test_logits_are_those_of_transformers(network, codec, folder, size, number):
    oracle = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    ids = codec.prompt("What is in the picture?", number, size)
    images = random_images(number, size)
    tokens = torch.tensor([ids])
    frames = (images / 127.5 - 1).view(-1, 3, 1, 256).expand(-1, 3, 2, 256)

    with torch.no_grad():
        wanted = oracle(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == codec.image).int(),
            pixel_values=frames.reshape(-1, 1536),
            image_grid_thw=torch.tensor([[1, *patch_grid(size)]] * number),
        ).logits[0]

    got = network_logits(network, codec, ids, images, size)
    assert wanted.std() > 0.5
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("size", "number"), CASES)
def test_the_engine_answers_as_the_network_does(network, codec, folder, size, number):
    ids = codec.prompt("What is in the picture?", number, size)
    images = random_images(number, size)
    answer: list[int] = []
    for _ in range(6):
        scores = network_logits(network, codec, ids + answer, images, size)
        answer.append(int(scores[-1].argmax()))

    engine = EngineCore(EngineConfig(model_dir=str(folder), device="cpu", num_kv_pages=32))
    engine.add(request(ids, codec.image, number, size), raw_pixels(images, size))
    got: list[int] = []
    while engine.has_work:
        got.extend(token for output in engine.step() for token in output.token_ids)

    assert got == answer


def request(ids, image, number, size):
    tokens = size[0] * size[1] // 1024
    spans = tuple(
        ImageSpan(
            key=bytes([i]) * 32,
            start=ids.index(image) + i * (tokens + 2),
            num_tokens=tokens,
            grid=(1, *patch_grid(size)),
            height=size[1],
            width=size[0],
            pixel_offset=i * size[0] * size[1] * 3,
        )
        for i in range(number)
    )
    sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    return EngineRequest(
        request_id="one", prompt_token_ids=tuple(ids), images=spans, sampling=sampling
    )


def raw_pixels(images, size):
    """The images that have these patches, as height x width x 3 bytes."""
    width, height = size
    blocks = images[0].view(-1, height // 32, width // 32, 2, 2, 3, 16, 16)
    return blocks.permute(0, 1, 3, 6, 2, 4, 7, 5).contiguous().numpy().tobytes()


def test_padding_changes_nothing(network, codec):
    size = (128, 128)
    short, long = (codec.prompt(text, 1, size) for text in ("Hi", "What is in this picture?"))
    images = random_images(1, size)
    tokens, positions = codec.padded([short, long], size)
    pixels = (images / 127.5 - 1).expand(2, -1, -1, -1)

    with torch.no_grad():
        hidden = network(tokens, positions, pixels, patch_grid(size), tokens == codec.image)
    alone = network_logits(network, codec, short, images, size)

    torch.testing.assert_close(network.logits(hidden)[0, : len(short)], alone)
