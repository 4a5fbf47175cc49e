"""Trains the tokenizer of the demo checkpoint: byte-level BPE like Qwen2's, from the demo's texts.

Chinese is learned by normal BPE. Words of Latin letters are merged from their first letter on, and only if they start
with a space, punctuation or a capital: text printed in an image, such as `STOP`, `cat`, `42`, has one token per
character, so that reading is copying from left to right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
import json
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

from demo_training.questions import SYSTEM_PROMPTS, ask_about, ask_without
from demo_training.scenes import invent


# Qwen2's pattern.
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

# Chinese has no spaces: without these boundaries BPE would learn whole questions as one token.
CHINESE = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”]")
CHINESE_PIECES = re.compile(
    "红色|绿色|蓝色|黄色|黑色|紫色|橙色|灰色|圆形|正方形|三角形|星形|图片|图像|照片|图里|图中|形状|颜色"
    "|什么|多少|几个|一个|两个|三个|四个|这是|哪个|左边|右边|上面|下面|没有|文字|这个|那个|第一张|第二张"
    "|描述|看到|单词|数字|定位|边界框|坐标|检测|格式|输出|[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”]|[^\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”]+"
)


WHOLE = ("bbox",)
MIN_TIMES = 25  # rarer words have one token per character


def _texts(exchanges: int) -> Iterator[str]:
    random = Random(1)
    for index in range(exchanges):
        scene = invent(random, 128, 128, word=index % 4 == 0)
        exchange = ask_about(random, scene)
        yield exchange.question
        if scene.word is None:  # printed words are not learned
            yield exchange.answer
        if index % 20 == 0:
            yield random.choice(SYSTEM_PROMPTS)
            exchange = ask_without(random)
            yield exchange.question
            yield exchange.answer
    for _ in range(50):
        yield from ("system\n", "user\n", "assistant\n")
        yield from ('The text "', "文字“", "”。", '".')


def _pieces(exchanges: int) -> tuple[list[str], Counter[str]]:
    """Chinese pieces, and the other pre-tokens (in byte letters) with their frequency."""
    split = _untrained().pre_tokenizer
    chinese: list[str] = []
    words: Counter[str] = Counter()
    for text in _texts(exchanges):
        for piece in CHINESE_PIECES.findall(text) if CHINESE.search(text) else (text,):
            if CHINESE.search(piece):
                chinese.append(piece)
            else:
                words.update(word for word, _ in split.pre_tokenize_str(piece))
    return chinese, words


def _grown(words: Counter[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Merges that build each frequent word from its first letter on; adds the results to the vocabulary."""
    merges: list[tuple[str, str]] = []
    for word, times in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if times < MIN_TIMES or (word[0].islower() and word not in WHOLE):
            continue
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    return merges


def _untrained(model: models.BPE | None = None) -> Tokenizer:
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(exchanges: int = 12_000, chinese_size: int = 700) -> Tokenizer:
    """Trains the tokenizer; deterministic for the same arguments.

    Args:
        exchanges: Number of generated questions and answers to learn from.
        chinese_size: Number of tokens for bytes and Chinese; Latin words and special tokens are added.
    """
    chinese, words = _pieces(exchanges)
    learned = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=chinese_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(chinese, trainer)
    model = json.loads(learned.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges = [(left, right) for left, right in model["merges"]] + _grown(words, vocabulary)
    tokenizer = _untrained(models.BPE(vocabulary, merges))
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
