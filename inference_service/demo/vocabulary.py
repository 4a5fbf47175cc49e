"""The tokenizer of the demo checkpoint: byte-level BPE as Qwen2's, learned from the demo's own texts.

Owns its training and the special tokens. Must not know pixels or torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
import re

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from inference_service.demo.questions import SYSTEM_PROMPTS, ask_about, ask_without
from inference_service.demo.scenes import invent


# Qwen2's own pattern.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

# Chinese has no spaces: without these borders BPE would learn whole questions as one token.
CHINESE = re.compile("[\u4e00-\u9fff]")
CHINESE_PIECES = re.compile(
    "红色|绿色|蓝色|黄色|黑色|紫色|橙色|灰色|圆形|正方形|三角形|星形|图片|图像|照片|图里|图中|形状|颜色"
    "|什么|多少|几个|一个|两个|三个|四个|这是|哪个|左边|右边|上面|下面|没有|文字|这个|那个|第一张|第二张"
    "|描述|看到|[\u4e00-\u9fff]|[^\u4e00-\u9fff]+"
)


def _texts(exchanges: int) -> Iterator[str]:
    random = Random(1)
    for index in range(exchanges):
        exchange = ask_about(random, invent(random, 128, 128), 1.0)
        yield exchange.answer
        yield exchange.question
        if index % 20 == 0:
            yield random.choice(SYSTEM_PROMPTS)
            exchange = ask_without(random)
            yield exchange.question
            yield exchange.answer
    for _ in range(50):
        yield from ("system\n", "user\n", "assistant\n")


def _pieces(exchanges: int) -> Iterator[str]:
    for text in _texts(exchanges):
        yield from CHINESE_PIECES.findall(text) if CHINESE.search(text) else (text,)


def train_tokenizer(exchanges: int = 12_000, vocab_size: int = 1000) -> Tokenizer:
    """Learns the tokenizer; the same arguments always give the same one.

    Args:
        exchanges: Invented questions and answers to learn from.
        vocab_size: Learned tokens, the 256 bytes included; the special tokens come on top.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(exchanges), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in PLAIN_ADDED_TOKENS]
    )
    return tokenizer


def special_id(tokenizer: Tokenizer, text: str) -> int:
    """Id of a special token.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    number = tokenizer.token_to_id(text)
    if number is None:
        raise ValueError(f"the tokenizer has no {text}")
    return number
