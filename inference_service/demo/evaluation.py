"""Measures how often the network's greedy answer is, word for word, the right one.

Owns the unseen questions, greedy decoding and the table. Must not know the training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from inference_service.demo.batches import SIZE_WEIGHTS, SIZES, Codec, Size, patch_grid
from inference_service.demo.naming import LANGUAGES
from inference_service.demo.network import Network
from inference_service.demo.pictures import as_seen, draw_size, patches, render
from inference_service.demo.questions import Exchange, ask_about
from inference_service.demo.scenes import invent
from inference_service.demo.tasks import TASKS


MAIN_TASKS = ("describe", "colour", "shape", "count")
ALL_TASKS = tuple(task.name for task in TASKS)
UNSEEN_SEED = 10**9  # the training counts its seeds from 0 and never comes here
MOST_ANSWER_TOKENS = 64

Scores = dict[tuple[str, str], tuple[int, int]]
"""(task, language) -> right answers, questions."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A question about one picture, [N, 768] uint8 patches seen at `size`."""

    exchange: Exchange
    size: Size
    patches: torch.Tensor


def unseen_trials(task: str, language: str, number: int) -> list[Trial]:
    """Questions of one kind about pictures that the training never showed."""
    trials: list[Trial] = []
    random = Random(UNSEEN_SEED)
    while len(trials) < number:
        size = random.choices(SIZES, SIZE_WEIGHTS)[0]
        scene = invent(random, *draw_size(random, size))
        exchange = ask_about(random, scene, 1.0, task)
        if (exchange.task, exchange.language) != (task, language):
            continue  # this scene allows no such question, or the lot gave the other language
        pixels = np.ascontiguousarray(patches(as_seen(render(scene))))
        trials.append(Trial(exchange, size, torch.from_numpy(pixels)))
    return trials


@torch.no_grad()
def greedy_answers(network: Network, codec: Codec, trials: Sequence[Trial]) -> list[str]:
    """Answers to questions about pictures of one size, decoded together."""
    size = trials[0].size
    device = network.model.language_model.embed_tokens.weight.device
    prompts = [codec.prompt(trial.exchange.question, 1, size) for trial in trials]
    pixels = torch.stack([trial.patches for trial in trials])[:, None].to(device) / 127.5 - 1
    answers: list[list[int]] = [[] for _ in trials]
    going = list(range(len(trials)))
    for _ in range(MOST_ANSWER_TOKENS):
        rows = [prompts[i] + answers[i] for i in going]
        ids, positions = (tensor.to(device) for tensor in codec.padded(rows, size))
        hidden = network(ids, positions, pixels[going], patch_grid(size), ids == codec.picture)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        scores = network.logits(hidden[torch.arange(len(rows), device=device), last])
        for i, token in zip(tuple(going), scores.argmax(-1).tolist(), strict=True):
            if token == codec.end:
                going.remove(i)
            else:
                answers[i].append(token)
        if not going:
            break
    return [codec.tokenizer.decode(answer) for answer in answers]


def evaluate(network: Network, codec: Codec, tasks: Sequence[str], number: int) -> Scores:
    """Asks `number` unseen questions of each task in each language."""
    network.eval()
    scores: Scores = {}
    for task in tasks:
        for language in LANGUAGES:
            by_size: defaultdict[Size, list[Trial]] = defaultdict(list)
            for trial in unseen_trials(task, language, number):
                by_size[trial.size].append(trial)
            right = 0
            for trials in by_size.values():
                answers = greedy_answers(network, codec, trials)
                right += sum(
                    answer == trial.exchange.answer
                    for answer, trial in zip(answers, trials, strict=True)
                )
            scores[task, language] = right, number
    network.train()
    return scores


def line(scores: Scores) -> str:
    """The scores in one line, for a log."""
    return " ".join(
        f"{task}/{language} {right}/{asked}" for (task, language), (right, asked) in scores.items()
    )


def table(scores: Scores) -> str:
    """The scores as a Markdown table of percentages."""
    lines = ["| task | questions | English | Chinese |", "| --- | --- | --- | --- |"]
    for task in dict.fromkeys(task for task, _ in scores):
        shares = [100 * right / asked for right, asked in (scores[task, x] for x in LANGUAGES)]
        asked = sum(scores[task, language][1] for language in LANGUAGES)
        lines.append(f"| {task} | {asked} | {shares[0]:.0f} % | {shares[1]:.0f} % |")
    return "\n".join(lines)
