"""Measures the accuracy of the network during training, by greedy decoding without a cache.

`evaluate` measures the served model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from demo_training.batches import Codec, patch_grid
from demo_training.examples import Size
from demo_training.images import as_seen, patches
from demo_training.naming import LANGUAGES
from demo_training.network import Network
from demo_training.trials import Scores, Trial, judge, unseen_trials


MAIN_TASKS = ("describe", "colour", "shape", "count", "locate", "read")
MAX_ANSWER_TOKENS = 96


@torch.no_grad()
def greedy_answers(network: Network, codec: Codec, trials: Sequence[Trial]) -> list[str]:
    """Answers to questions, decoded together.

    Args:
        network: The network.
        codec: Its tokenizer.
        trials: All with the same number and size of images, without previous turns.

    Returns:
        An answer to each, with at most MAX_ANSWER_TOKENS tokens.
    """
    size, number = trials[0].size, len(trials[0].images)
    device = network.model.language_model.embed_tokens.weight.device
    prompts = [codec.prompt(trial.exchange.question, number, size) for trial in trials]
    drawn = np.stack([[patches(as_seen(shown)) for shown in t.images] for t in trials])
    pixels = torch.from_numpy(drawn).to(device) / 127.5 - 1
    answers: list[list[int]] = [[] for _ in trials]
    going = list(range(len(trials)))
    for _ in range(MAX_ANSWER_TOKENS):
        rows = [prompts[i] + answers[i] for i in going]
        ids, positions = (tensor.to(device) for tensor in codec.padded(rows, size))
        hidden = network(ids, positions, pixels[going], patch_grid(size), ids == codec.image)
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


def validate(network: Network, codec: Codec, tasks: Sequence[str], number: int) -> Scores:
    """Scores `number` unseen questions per task and language, see `trials.unseen_trials`."""
    network.eval()
    scores: Scores = {}
    for task in tasks:
        for language in LANGUAGES:
            by_size: defaultdict[Size, list[Trial]] = defaultdict(list)
            for trial in unseen_trials(task, language, number):
                by_size[trial.size].append(trial)
            right = 0.0
            for trials in by_size.values():
                answers = greedy_answers(network, codec, trials)
                right += sum(
                    judge(trial.exchange, answer)
                    for answer, trial in zip(answers, trials, strict=True)
                )
            scores[task, language] = right, number
    network.train()
    return scores


def line(scores: Scores) -> str:
    """The scores in one line, for a log."""
    return " ".join(
        f"{task}/{language} {right:.1f}/{asked}"
        for (task, language), (right, asked) in scores.items()
    )
