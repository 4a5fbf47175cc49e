"""Trains the demo checkpoint, or measures one.

    python -m inference_service.demo.train --state state.pt --tokenizer tokenizer.json --minutes 65 --out MODEL_DIR
    python -m inference_service.demo.train --evaluate MODEL_DIR

First the vision tower looks at single shapes alone (`looking`), then the whole network learns to answer, and the tower
goes on looking beside it.

Owns the optimisation: Muon for matrices, AdamW for the rest, a cosine over the time that is given, a
moving average of the weights, and a state from which a stopped training goes on. Must not know how
pictures, questions or answers are made.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
import json
import math
from pathlib import Path
import time
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from inference_service.demo import MODEL_DIR
from inference_service.demo.batches import Batch, Batches, Codec, make_look
from inference_service.demo.evaluation import ALL_TASKS, MAIN_TASKS, evaluate, line, table
from inference_service.demo.export import export, network_config
from inference_service.demo.looking import LookingHead
from inference_service.demo.muon import Muon
from inference_service.demo.network import Network, NetworkConfig
from inference_service.demo.vocabulary import train_tokenizer


ROW_MULTIPLE = 32  # rows of the embedding are padded to a multiple of this
AVERAGE = 0.995
WARM_UP_STEPS = 100
LEAST_RATE = 0.03
LOOKING_SHARE = 0.3  # of the looking loss beside that of the answers
LOOK_SEEDS = 10**9  # apart from those of conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
        minutes: Length of the whole training, earlier runs of the same state counted in.
        looks: Steps of looking alone, before the first conversation.
        look_size: Pictures in such a step.
        batch_size: Conversations in a step.
        muon_rate: Learning rate of the matrices.
        adam_rate: Learning rate of everything else.
        log_every: Steps between two lines of the log.
        save_every: Steps between two measurements and saved states.
        questions: Unseen questions per task and language in a measurement.
        workers: Processes that make batches; 0 = none but this.
        most_steps: Stop at this step, however much time is left; None = never.
    """

    minutes: float = 65.0
    looks: int = 400
    look_size: int = 64
    batch_size: int = 24
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    log_every: int = 50
    save_every: int = 500
    questions: int = 16
    workers: int = 1
    most_steps: int | None = None


def learning_rate_share(step: int, share_of_time: float) -> float:
    """Share of the full rate: warm-up by steps, and half a cosine by time."""
    time_share = max(LEAST_RATE, 0.5 * (1 + math.cos(math.pi * share_of_time)))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * time_share


@dataclass(slots=True)
class Trainer:
    """A network in training.

    Attributes:
        network: The network, on its device.
        codec: Its tokenizer.
        config: How to train.
        state_file: Where the state is kept.
        step: Steps done.
        used_seconds: Time spent by earlier runs.
        average: Moving average of the weights; this is what is exported.
    """

    network: Network
    codec: Codec
    config: TrainingConfig
    state_file: Path
    step: int = 0
    used_seconds: float = 0.0
    average: dict[str, torch.Tensor] = field(init=False)
    _looking: LookingHead = field(init=False)
    _optimisers: tuple[Muon, torch.optim.AdamW] = field(init=False)
    _rates: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        device = self.network.model.language_model.embed_tokens.weight.device
        self._looking = LookingHead(self.network).to(device)
        named = list(self.network.named_parameters())
        matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name]
        rest = [p for name, p in named if p.dim() != 2 or "embed" in name]
        rest += self._looking.parameters()
        self._rates = (self.config.muon_rate, self.config.adam_rate)
        self._optimisers = (
            Muon(matrices, lr=self._rates[0]),
            torch.optim.AdamW(rest, lr=self._rates[1], betas=(0.9, 0.98), weight_decay=0.01),
        )
        if self.state_file.exists():
            self._resume()
        else:
            self.average = {k: v.clone() for k, v in self.network.state_dict().items()}

    def _resume(self) -> None:
        device = self.network.model.language_model.embed_tokens.weight.device
        state: dict[str, Any] = torch.load(self.state_file, map_location=device, weights_only=True)
        self.network.load_state_dict(state["m"])
        self._looking.load_state_dict(state["looking"])
        for optimiser, saved in zip(self._optimisers, state["o"], strict=True):
            optimiser.load_state_dict(saved)
        self.average, self.step, self.used_seconds = state["ema"], state["step"], state["used"]

    def save(self, used_seconds: float) -> None:
        """Writes the state; the file is replaced in one step."""
        held = self.state_file.with_suffix(".part")
        state = {
            "m": self.network.state_dict(),
            "looking": self._looking.state_dict(),
            "o": [optimiser.state_dict() for optimiser in self._optimisers],
            "ema": self.average,
            "step": self.step,
            "used": used_seconds,
        }
        torch.save(state, held)
        held.replace(self.state_file)

    def learn(self, batch: Batch, share_of_time: float) -> torch.Tensor:
        """One step; returns the mean loss of the answers' tokens, a scalar on the device."""
        self._set_rates(learning_rate_share(self.step, share_of_time))
        loss = self._loss(batch)
        looking = self._looking.loss(batch.labels.to(loss.device))
        self._descend(loss + LOOKING_SHARE * looking)
        weight = 1 - min(AVERAGE, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, weight)
        self.step += 1
        return loss.detach()

    def look(self) -> None:
        """The steps of looking alone; the answers' weights stay as they are."""
        for number in range(self.config.looks):
            share = learning_rate_share(number, number / self.config.looks)
            self._set_rates(share)
            look = make_look(LOOK_SEEDS + number, self.config.look_size)
            device = self.network.model.language_model.embed_tokens.weight.device
            self.network.model.visual(look.patches.to(device) / 127.5 - 1, *look.grid)
            loss = self._looking.loss(look.labels.to(device))
            self._descend(loss)
            if (number + 1) % self.config.log_every == 0:
                print(f"look {number + 1} loss {loss.item():.4f}", flush=True)
        self.average = {k: v.clone() for k, v in self.network.state_dict().items()}

    def _set_rates(self, share: float) -> None:
        for optimiser, rate in zip(self._optimisers, self._rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share

    def _descend(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def _loss(self, batch: Batch) -> torch.Tensor:
        device = self.network.model.language_model.embed_tokens.weight.device
        ids, learned = batch.token_ids.to(device), batch.learned[:, 1:].to(device)
        pixels = None if batch.patches is None else batch.patches.to(device) / 127.5 - 1
        hidden = self.network(
            ids, batch.positions.to(device), pixels, batch.grid, ids == self.codec.picture
        )
        return cross_entropy(self.network.logits(hidden[:, :-1][learned]), ids[:, 1:][learned])

    def measure(self) -> str:
        """Accuracy of the averaged weights on the main tasks."""
        current = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        scores = evaluate(self.network, self.codec, MAIN_TASKS, self.config.questions)
        self.network.load_state_dict(current)
        return line(scores)

    def run(self) -> None:
        """Trains until the time is over, with a log on the standard output."""
        config = self.config
        if self.step == 0:
            self.look()
        batches = Batches(self.codec, self.step, config.batch_size)
        loader = DataLoader(batches, batch_size=None, num_workers=config.workers)
        started, logged, losses = time.monotonic(), self.step, torch.zeros(())
        for batch in loader:
            used = self.used_seconds + time.monotonic() - started
            share = min(1.0, used / (60 * config.minutes))
            losses = losses + self.learn(batch, share).cpu()
            done = share >= 1 or self.step == config.most_steps
            if self.step % config.log_every == 0 or done:
                mean = losses.item() / (self.step - logged)
                print(f"step {self.step} loss {mean:.4f} used {used:.0f} s", flush=True)
                logged, losses = self.step, torch.zeros(())
            if self.step % config.save_every == 0 or done:
                self.save(used)
                print(f"step {self.step} {self.measure()}", flush=True)
            if done:
                break


def load_network(model_dir: Path) -> tuple[Network, Codec]:
    """The network and tokenizer of an exported folder."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    network = Network(network_config(config))
    network.load_state_dict(load_file(model_dir / "model.safetensors"))
    return network, Codec(Tokenizer.from_file(str(model_dir / "tokenizer.json")))


def open_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in that file, which is learned and written first if it is absent."""
    if not file.exists():
        train_tokenizer().save(str(file))
    return Tokenizer.from_file(str(file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint, or measure one.")
    parser.add_argument("--state", type=Path, default=Path("state.pt"), help="kept state; resumed")
    parser.add_argument("--tokenizer", type=Path, default=Path("tokenizer.json"))
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to export to")
    parser.add_argument("--minutes", type=float, default=65.0, help="length of the whole training")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    parser.add_argument("--evaluate", type=Path, metavar="MODEL_DIR", help="only measure this")
    parser.add_argument("--questions", type=int, default=100, help="per task and language")
    return parser


def main() -> None:
    """The command."""
    arguments = _parser().parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.evaluate is not None:
        network, codec = load_network(arguments.evaluate)
        print(table(evaluate(network.to(device), codec, ALL_TASKS, arguments.questions)))
        return
    torch.manual_seed(0)
    tokenizer = open_tokenizer(arguments.tokenizer)
    rows = math.ceil(tokenizer.get_vocab_size() / ROW_MULTIPLE) * ROW_MULTIPLE
    network = Network(NetworkConfig(vocab_size=rows)).to(device)
    config = TrainingConfig(
        minutes=arguments.minutes, batch_size=arguments.batch_size, workers=arguments.workers
    )
    trainer = Trainer(network, Codec(tokenizer), config, arguments.state)
    trainer.run()
    export(trainer.average, network.config, arguments.tokenizer, arguments.out)


if __name__ == "__main__":
    main()
