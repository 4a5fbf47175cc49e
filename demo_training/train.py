"""Trains the demo checkpoint.

    python -m demo_training.train --state state.pt --tokenizer tokenizer.json --minutes 120 --out MODEL_DIR

First only the vision tower is trained on the auxiliary task (`looking`), then the whole network learns to answer, with
the auxiliary task on the images of the questions and on other images.

Matrices are optimised by Muon, the rest by AdamW, with rates that decay over the given time. The moving average of the
weights is exported; an interrupted training resumes from its state file.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
import math
from pathlib import Path
import time
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
import torch
from torch.nn.functional import cross_entropy

from demo_training.batches import (
    LOOK_SEEDS,
    Batch,
    Codec,
    Look,
    Truth,
    batches,
    looks,
    make_look,
)
from demo_training.export import export
from demo_training.lettering import PILLOW_ONLY, Fonts
from demo_training.looking import LookingHead
from demo_training.muon import Muon
from demo_training.network import Network
from demo_training.network_config import NetworkConfig
from demo_training.validation import MAIN_TASKS, line, validate
from demo_training.vocabulary import train_tokenizer
from demo_training.whitening import whiten


ROW_MULTIPLE = 32  # rows of the embedding are padded to a multiple of this
EMA_DECAY = 0.995
WARM_UP_STEPS = 100
WHITENING_IMAGES = 256
MIN_LOOKING_RATE, MIN_RATE = 0.1, 0.02
TOWER_RATE = 0.5  # of the full rate, after the auxiliary task
LOOKING_SHARE = 0.3  # weight of the auxiliary loss relative to that of the answers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The settings of a training.

    Attributes:
        minutes: Total time of the training, including earlier runs of the same state.
        slice_minutes: Time after which this run stops, to be resumed later; None = no limit.
        looking: Fraction of the time for the auxiliary task alone.
        look_size: Images per step of the auxiliary task.
        looks_beside: Additional images for the auxiliary task per step of answering.
        batch_size: Conversations per step.
        muon_rate: Learning rate of the matrices.
        adam_rate: Learning rate of the other parameters.
        log_every: Steps between lines of the log.
        save_every: Steps between measurements and saved states.
        questions: Unseen questions per task and language in a measurement.
        workers: Processes that generate batches; 0 = the main process.
        fonts: Fonts of the printed words.
        max_looks: Maximum number of steps of the auxiliary task alone; None = no limit.
        max_steps: Maximum number of steps of answering; None = no limit.
    """

    minutes: float = 120.0
    slice_minutes: float | None = None
    looking: float = 0.3
    look_size: int = 32
    looks_beside: int = 16
    batch_size: int = 24
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    log_every: int = 50
    save_every: int = 500
    questions: int = 16
    workers: int = 1
    fonts: Fonts = PILLOW_ONLY
    max_looks: int | None = None
    max_steps: int | None = None


def looking_rate(step: int, share_of_time: float) -> float:
    """Fraction of the full rate for the auxiliary task: warm-up by steps, then linear decay over time."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(MIN_LOOKING_RATE, 1 - share_of_time)


def learning_rate(step: int, share_of_time: float) -> float:
    """Fraction of the full rate for answering: warm-up by steps, then cosine decay over time."""
    time_share = max(MIN_RATE, 0.5 * (1 + math.cos(math.pi * share_of_time)))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * time_share


@dataclass(slots=True)
class Trainer:
    """A network in training.

    Attributes:
        network: The network, on its device.
        codec: Its tokenizer.
        config: The settings.
        state_file: File of the state.
        looks: Completed steps of the auxiliary task.
        step: Completed steps of answering.
        used_seconds: Time spent, including earlier runs.
        average: Moving average of the weights, which is exported.

    Raises:
        ValueError: The state belongs to a training with another tokenizer.
    """

    network: Network
    codec: Codec
    config: TrainingConfig
    state_file: Path
    looks: int = 0
    step: int = 0
    used_seconds: float = 0.0
    average: dict[str, torch.Tensor] = field(init=False)
    _looking: LookingHead = field(init=False)
    _optimisers: tuple[Muon, torch.optim.AdamW] = field(init=False)

    def __post_init__(self) -> None:
        self._looking = LookingHead(self.network).to(self._device)
        matrices: tuple[list[torch.nn.Parameter], ...] = (
            [],
            [],
        )  # of the tower, of the rest of the network
        others: tuple[list[torch.nn.Parameter], ...] = (list(self._looking.parameters()), [])
        for name, parameter in self.network.named_parameters():
            is_matrix = parameter.dim() == 2 and "embed" not in name
            (matrices if is_matrix else others)["visual" not in name].append(parameter)
        self._optimisers = (
            Muon([{"params": group} for group in matrices], lr=0.0),
            torch.optim.AdamW(
                [{"params": group} for group in others], betas=(0.9, 0.98), weight_decay=0.01
            ),
        )
        if self.state_file.exists():
            self._resume()
        else:
            self._restart_average()

    @property
    def _device(self) -> torch.device:
        return self.network.model.language_model.embed_tokens.weight.device

    def _restart_average(self) -> None:
        self.average = {k: v.clone() for k, v in self.network.state_dict().items()}

    def _resume(self) -> None:
        state: dict[str, Any] = torch.load(
            self.state_file, map_location=self._device, weights_only=True
        )
        if state["tokenizer"] != self.codec.tokenizer.to_str():
            raise ValueError(f"{self.state_file} was trained with another tokenizer")
        self.network.load_state_dict(state["network"])
        self._looking.load_state_dict(state["looking"])
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.average, self.used_seconds = state["average"], state["used_seconds"]
        self.looks, self.step = state["looks"], state["step"]

    def save(self) -> None:
        """Writes the state; replaces the file atomically."""
        held = self.state_file.with_suffix(".part")
        state = {
            "tokenizer": self.codec.tokenizer.to_str(),
            "network": self.network.state_dict(),
            "looking": self._looking.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "average": self.average,
            "looks": self.looks,
            "step": self.step,
            "used_seconds": self.used_seconds,
        }
        torch.save(state, held)
        held.replace(self.state_file)

    def look(self, look: Look, share_of_time: float) -> str:
        """One step of the auxiliary task; returns its accuracy for the log every `log_every` steps, else empty."""
        self._set_rates(looking_rate(self.looks, share_of_time), 0.0)
        truth = self._see(look)
        self.looks += 1
        accuracy = self._looking.right(truth) if self.looks % self.config.log_every == 0 else ""
        self._descend(self._looking.loss(truth))
        return accuracy

    def _see(self, look: Look) -> Truth:
        """Runs the tower on images; returns their labels."""
        self.network.model.visual(look.patches.to(self._device) / 127.5 - 1, *look.grid)
        return look.truth.to(self._device)

    def learn(self, batch: Batch, look: Look, share_of_time: float) -> torch.Tensor:
        """One step of answering; returns the mean loss of the answers' tokens, a scalar on the device."""
        if self.step == 0:
            self._restart_average()
        rate = learning_rate(self.step, share_of_time)
        self._set_rates(TOWER_RATE * rate, rate)
        answering = self._loss(batch)
        loss = answering
        if batch.truth is not None:
            loss = loss + LOOKING_SHARE * self._looking.loss(batch.truth.to(self._device))
        truth = self._see(look)
        self._descend(loss + LOOKING_SHARE * self._looking.loss(truth))
        weight = 1 - min(EMA_DECAY, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, weight)
        self.looks += 1
        self.step += 1
        return answering.detach()

    def _set_rates(self, tower: float, rest: float) -> None:
        full = (self.config.muon_rate, self.config.adam_rate)
        for optimiser, rate in zip(self._optimisers, full, strict=True):
            for group, share in zip(optimiser.param_groups, (tower, rest), strict=True):
                group["lr"] = rate * share

    def _descend(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call] # untyped in torch
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def _loss(self, batch: Batch) -> torch.Tensor:
        ids, learned = batch.token_ids.to(self._device), batch.learned[:, 1:].to(self._device)
        pixels = None if batch.patches is None else batch.patches.to(self._device) / 127.5 - 1
        positions = batch.positions.to(self._device)
        hidden = self.network(ids, positions, pixels, batch.grid, ids == self.codec.image)
        return cross_entropy(self.network.logits(hidden[:, :-1][learned]), ids[:, 1:][learned])

    def measure(self) -> str:
        """Accuracy of the averaged weights on the main tasks."""
        current = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        scores = validate(self.network, self.codec, MAIN_TASKS, self.config.questions)
        self.network.load_state_dict(current)
        return line(scores)

    def run(self) -> None:
        """Trains until the time or the slice is used up; logs to standard output."""
        config, seconds = self.config, 60 * self.config.minutes
        looking = seconds * config.looking
        stop = math.inf if config.slice_minutes is None else 60 * config.slice_minutes
        stop = min(seconds, stop + self.used_seconds)
        if self.step == 0 and self.used_seconds < looking and self.looks != config.max_looks:
            self._run_looks(looking, min(looking, stop))
        if self.used_seconds < stop:
            self._run_steps(looking, seconds, stop)

    def _run_looks(self, end: float, stop: float) -> None:
        config, before = self.config, time.monotonic() - self.used_seconds
        for look in looks(self.looks, config.look_size, config.workers, config.fonts):
            accuracy = self.look(look, self.used_seconds / end)
            self.used_seconds = time.monotonic() - before
            done = self.used_seconds >= stop or self.looks == config.max_looks
            if accuracy:
                print(f"look {self.looks} {accuracy} {self._clock()}", flush=True)
            if self.looks % config.save_every == 0 or done:
                self.save()
            if done:
                break

    def _run_steps(self, begin: float, end: float, stop: float) -> None:
        config, before = self.config, time.monotonic() - self.used_seconds
        logged, losses = self.step, torch.zeros(())
        asked = batches(self.codec, self.step, config.batch_size, config.workers, config.fonts)
        beside = looks(self.looks, config.looks_beside, config.workers, config.fonts)
        for batch, look in zip(asked, beside, strict=False):
            share = min(1.0, max(0.0, self.used_seconds - begin) / max(end - begin, 1e-9))
            losses = losses + self.learn(batch, look, share).cpu()
            self.used_seconds = time.monotonic() - before
            done = self.used_seconds >= stop or self.step == config.max_steps
            if self.step % config.log_every == 0 or done:
                mean = losses.item() / (self.step - logged)
                print(f"step {self.step} loss {mean:.4f} {self._clock()}", flush=True)
                logged, losses = self.step, torch.zeros(())
            if self.step % config.save_every == 0 or done:
                self.save()
                print(f"step {self.step} {self.measure()}", flush=True)
            if done:
                break

    def _clock(self) -> str:
        return f"used {self.used_seconds:.0f} s"


def open_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a file, which is trained and written first if it is missing."""
    if not file.exists():
        train_tokenizer().save(str(file))
    return Tokenizer.from_file(str(file))


def first_network(tokenizer: Tokenizer, begin: Path | None = None) -> Network:
    """A network for a tokenizer: with the weights of a folder, or with random weights and a whitened patch embedding.

    Raises:
        RuntimeError: The folder's weights have other shapes.
        OSError: The folder cannot be read.
    """
    rows = math.ceil(tokenizer.get_vocab_size() / ROW_MULTIPLE) * ROW_MULTIPLE
    network = Network(NetworkConfig(vocab_size=rows))
    if begin is None:
        whiten(network, make_look(LOOK_SEEDS - 1, WHITENING_IMAGES))
    else:
        network.load_state_dict(load_file(begin / "model.safetensors"))
    return network


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument(
        "--state", type=Path, default=Path("state.pt"), help="state file; resumed if it exists"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--tokenizer",
        type=Path,
        default=Path("tokenizer.json"),
        help="tokenizer.json; trained if it is missing",
    )
    source.add_argument(
        "--begin",
        type=Path,
        metavar="MODEL_DIR",
        help="folder with initial weights and their tokenizer",
    )
    parser.add_argument("--out", type=Path, default=Path("my_model"), help="folder to export to")
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="total training time in minutes"
    )
    parser.add_argument("--slice", type=float, metavar="MINUTES", help="maximum time of this run")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--workers", type=int, default=1, help="processes that generate batches")
    parser.add_argument(
        "--fonts",
        type=Path,
        metavar="DIR",
        help="also use the fonts in this directory, not only Pillow's",
    )
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    return parser


def main() -> None:
    """Runs the command."""
    arguments = _parser().parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    begin: Path | None = arguments.begin
    file = arguments.tokenizer if begin is None else begin / "tokenizer.json"
    tokenizer = open_tokenizer(file)
    network = first_network(tokenizer, begin).to(device)
    try:
        fonts = Fonts.under(arguments.fonts) if arguments.fonts else PILLOW_ONLY
    except ValueError as error:
        raise SystemExit(f"--fonts: {error}") from None
    config = TrainingConfig(
        minutes=arguments.minutes,
        slice_minutes=arguments.slice,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        fonts=fonts,
    )
    try:
        trainer = Trainer(network, Codec(tokenizer), config, arguments.state)
    except ValueError as error:
        raise SystemExit(f"{error}; use the --tokenizer or --begin of its first run") from None
    trainer.run()
    export(trainer.average, network.config, file, arguments.out)


if __name__ == "__main__":
    main()
