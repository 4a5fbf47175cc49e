"""Training, resuming and measuring, on a network of a few thousand weights."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer
import torch

from demo_training import train, validation
from demo_training.batches import Codec, batches, looks, make_look
from demo_training.muon import orthogonalised
from demo_training.network import Network
from demo_training.train import (
    Trainer,
    TrainingConfig,
    first_network,
    learning_rate,
    looking_rate,
)
from demo_training.trials import unseen_trials
from demo_training.validation import greedy_answers, validate
from demo_training.vocabulary import train_tokenizer
from demo_training.whitening import whiten
from demo_training.wordings import WORDINGS
from inference_service.demo import MODEL_DIR


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """An untrained network never ends an answer."""
    monkeypatch.setattr(validation, "MAX_ANSWER_TOKENS", 4)


def short_run(steps: int) -> TrainingConfig:
    """So long in time that the rate does not fall, but stopped after a few steps."""
    return TrainingConfig(
        minutes=1e6,
        max_looks=2,
        look_size=4,
        looks_beside=2,
        batch_size=2,
        log_every=2,
        save_every=10**6,
        questions=1,
        workers=0,
        max_steps=steps,
    )


def train_to(steps, network, codec, state_file) -> Trainer:
    trainer = Trainer(network, codec, short_run(steps), state_file)
    trainer.run()
    return trainer


@pytest.mark.full
def test_a_resumed_training_ends_where_an_unbroken_one_does(network, codec, tmp_path):
    first = Network(network.config)
    first.load_state_dict(network.state_dict())
    unbroken = train_to(4, network, codec, tmp_path / "unbroken.pt")

    train_to(2, first, codec, tmp_path / "broken.pt")
    resumed = train_to(4, Network(network.config), codec, tmp_path / "broken.pt")

    assert resumed.step == 4
    for name, value in unbroken.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value)
        torch.testing.assert_close(resumed.average[name], unbroken.average[name])


def test_a_slice_ends_and_the_next_goes_on(network, codec, tmp_path):
    state = tmp_path / "state.pt"
    sliced = dataclasses.replace(short_run(10**6), slice_minutes=1e-6)

    for _ in range(3):
        Trainer(network, codec, sliced, state).run()

    assert Trainer(network, codec, sliced, state).looks == 3


def test_a_training_that_is_over_does_nothing_more(network, codec, tmp_path):
    over = dataclasses.replace(short_run(10**6), minutes=1e-6)
    trainer = Trainer(network, codec, over, tmp_path / "state.pt")
    trainer.run()
    done = trainer.looks

    trainer.run()

    assert (trainer.looks, trainer.step) == (done, 0)


def test_a_state_goes_with_its_tokenizer(network, codec, tmp_path):
    train_to(1, network, codec, tmp_path / "state.pt")
    other = Codec(train_tokenizer(exchanges=50, chinese_size=280))

    with pytest.raises(ValueError, match="another tokenizer"):
        Trainer(network, other, short_run(2), tmp_path / "state.pt")


def test_the_log_tells_loss_and_accuracy_per_task_and_language(network, codec, tmp_path, capsys):
    train_to(2, network, codec, tmp_path / "state.pt")

    look, first, second = capsys.readouterr().out.splitlines()
    assert look.startswith("look 2 shapes ")
    assert first.startswith("step 2 loss ")
    assert all(
        f"{task}/{x} " in second
        for task in ("describe", "count", "locate", "read")
        for x in ("en", "zh")
    )


@pytest.mark.full
def test_learning_lowers_the_loss(network, codec, tmp_path):
    trainer = Trainer(network, codec, short_run(10**6), tmp_path / "state.pt")
    batch, look = next(batches(codec, 0, 4)), make_look(0, 2)

    losses = [trainer.learn(batch, look, 0.0).item() for _ in range(80)]

    assert losses[-1] < losses[0] / 2
    assert all(torch.isfinite(value).all() for value in trainer.average.values())


def test_the_rates_warm_up_and_fall():
    assert learning_rate(0, 0.0) == looking_rate(0, 0.0) == pytest.approx(0.01)
    assert learning_rate(1000, 0.0) == looking_rate(1000, 0.0) == 1
    assert learning_rate(1000, 0.5) == looking_rate(1000, 0.5) == pytest.approx(0.5)
    assert learning_rate(1000, 1.0) == pytest.approx(0.02)
    assert looking_rate(1000, 1.0) == pytest.approx(0.1)


def test_the_patch_embedding_begins_white(network):
    look = next(looks(0, 64))

    whiten(network, look)

    with torch.no_grad():
        seen = network.model.visual.patch_embed(look.patches / 127.5 - 1).flatten(0, 1)
    torch.testing.assert_close(torch.cov(seen.T), torch.eye(seen.shape[1]), atol=0.05, rtol=0)


def test_a_training_can_begin_with_shipped_weights():
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))

    network = first_network(tokenizer, MODEL_DIR)

    shipped = load_file(MODEL_DIR / "model.safetensors")
    assert all(torch.equal(value, shipped[name]) for name, value in network.state_dict().items())


def test_looking_changes_the_tower_and_nothing_else(network, codec, tmp_path):
    trainer = Trainer(network, codec, short_run(1), tmp_path / "state.pt")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    look = next(looks(0, 4))
    for _ in range(2):
        trainer.look(look, 0.0)
    changed = {
        name for name, value in network.state_dict().items() if not value.equal(before[name])
    }
    assert "model.visual.merger.linear_fc2.weight" in changed
    assert not {name for name in changed if name.startswith("model.language_model.")}


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_muon_evens_out_singular_values(shape):
    torch.manual_seed(0)

    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape), steps=5))

    assert values.min() > 0.5
    assert values.max() < 1.5


def test_answers_do_not_depend_on_the_company_they_are_decoded_in(network, codec):
    trials = [t for t in unseen_trials("describe", "en", 20) if t.size == (128, 128)][:3]
    assert len(trials) == 3

    together = greedy_answers(network.eval(), codec, trials)

    assert together == [greedy_answers(network, codec, [trial])[0] for trial in trials]


def test_the_network_is_examined_in_both_languages(network, codec, monkeypatch):
    greeting = WORDINGS["zh"].hello_answer
    monkeypatch.setattr(validation, "greedy_answers", lambda *args: [greeting] * len(args[2]))

    scores = validate(network, codec, ("hello",), 2)

    assert scores == {("hello", "en"): (0.0, 2), ("hello", "zh"): (2.0, 2)}


def test_the_command_trains_and_exports(monkeypatch, tmp_path):
    monkeypatch.setattr(validation, "unseen_trials", lambda *_: [])
    state, out = tmp_path / "state.pt", tmp_path / "model"
    command = f"--state {state} --begin {MODEL_DIR} --out {out} --batch-size 2 --workers 0"
    monkeypatch.setattr(sys, "argv", ["train", *command.split(), "--minutes", "0.0001"])

    train.main()

    assert state.exists()
    assert {file.name for file in out.iterdir()} == {file.name for file in MODEL_DIR.iterdir()}

    monkeypatch.setattr(sys, "argv", ["train", "--state", str(state), "--out", str(out)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="another tokenizer"):
        train.main()


def test_the_command_explains_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])

    with pytest.raises(SystemExit) as stopped:
        train.main()

    assert stopped.value.code == 0
    assert "--minutes" in capsys.readouterr().out
