"""What a step does beside answers in progress: learned from durations, of a simulated device."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from inference_service.engine.pace import MAX_STEP_S, MIN_TOKENS, MIN_TOKENS_WITHOUT_ANSWERS, Pace


SLOWDOWN = 2.0


@dataclass
class Device:
    """Takes so long for a step."""

    decode_s: float
    per_decode_s: float
    token_s: float
    mixed_s: float = 0.0

    def alone_s(self, decodes: int) -> float:
        return self.decode_s + decodes * self.per_decode_s

    def step_s(self, decodes: int, tokens: int) -> float:
        return self.alone_s(decodes) + tokens * self.token_s + (self.mixed_s if tokens else 0.0)


DEVICES = {
    "slow": Device(0.05, 0.01, 0.004),
    "fast": Device(0.01, 0.0001, 0.00004),
    "with a price for mixing": Device(0.002, 0.0001, 0.00002, 0.0005),
}


def run(pace: Pace, device: Device, decodes: int, steps: int) -> list[tuple[int, float]]:
    """Prompts without end beside some answers: prompt tokens of every step, and its duration in those of answers."""
    found = []
    for _ in range(steps):
        tokens = pace.tokens_beside(decodes, encoding=False)
        step_s = device.step_s(decodes, tokens)
        pace.note(decodes, tokens, step_s, encoded=False)
        found.append((tokens, step_s / device.alone_s(decodes)))
    return found


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("decodes", [1, 7, 60])
def test_a_step_is_no_longer_than_allowed(name: str, decodes: int) -> None:
    pace = Pace(2048, SLOWDOWN)
    settled = run(pace, DEVICES[name], decodes, 200)[40:]
    least = DEVICES[name].step_s(decodes, MIN_TOKENS) / DEVICES[name].alone_s(decodes)
    assert max(ratio for _, ratio in settled) <= max(1.05 * SLOWDOWN, least)


@pytest.mark.parametrize("name", DEVICES)
def test_what_fits_is_used(name: str) -> None:
    device = DEVICES[name]
    settled = run(Pace(2048, SLOWDOWN), device, 8, 200)[40:]
    fits = (device.alone_s(8) * (SLOWDOWN - 1) - device.mixed_s) / device.token_s
    mean = sum(tokens for tokens, _ in settled) / len(settled)
    assert mean > 0.85 * max(MIN_TOKENS, min(fits, 2048))


def test_it_follows_a_device_that_changes_and_a_batch_that_grows() -> None:
    pace = Pace(2048, SLOWDOWN)
    run(pace, DEVICES["fast"], 4, 100)
    slower = Device(0.03, 0.0001, 0.0004)
    assert max(ratio for _, ratio in run(pace, slower, 4, 300)[150:]) < 1.1 * SLOWDOWN
    assert max(ratio for _, ratio in run(pace, slower, 40, 300)[50:]) < 1.1 * SLOWDOWN


def test_one_slow_step_is_forgotten() -> None:
    pace, device = Pace(2048, SLOWDOWN), DEVICES["fast"]
    before = run(pace, device, 4, 200)[-2][0]
    pace.note(4, before, 5.0, encoded=False)
    assert run(pace, device, 4, 40)[-2][0] > 0.8 * before


@pytest.mark.parametrize("slow_s", [1.0, 0.00001])
@pytest.mark.parametrize("when", range(40))
def test_one_step_alone_that_is_held_up_changes_nothing(when: int, slow_s: float) -> None:
    """The first one on a cold device, or of so many answers, or any later one; nor one that seems to take no time."""
    pace, device = Pace(2048, SLOWDOWN), DEVICES["fast"]
    longest_s = 0.0
    for number in range(160):
        decodes = 4 if number < 80 else 9
        encode_s = pace.encode_s_beside(decodes, 0)
        longest_s = max(longest_s, encode_s)
        # Steps 0, 1, 2 and every 17th one are alone.
        step_s = slow_s if number in {when, 80 + when} and not encode_s else device.alone_s(decodes)
        pace.note(decodes, 0, step_s + encode_s, encoded=encode_s > 0)
    assert longest_s < 1.01 * (SLOWDOWN - 1) * device.alone_s(9)
    assert encode_s > 0.99 * (SLOWDOWN - 1) * device.alone_s(9) or encode_s == 0


def test_a_change_is_learned_in_two_steps_alone() -> None:
    pace = Pace(2048, SLOWDOWN)
    for step_s in (0.01, 0.01, 0.01, 0.08, 0.08):
        pace.note(4, 0, step_s, encoded=False)
    assert pace.encode_s_beside(4, 0) == pytest.approx(0.08)
    for step_s in (0.02, 0.02):
        pace.note(4, 0, step_s, encoded=False)
    assert pace.encode_s_beside(4, 0) == pytest.approx(0.02)


@pytest.mark.parametrize("token_s", [0.00001, 0.0001, 0.0003])
def test_a_step_without_answers_is_bounded_in_time(token_s: float) -> None:
    """Whoever comes meanwhile waits for its end; what fits is used."""
    settled = run(Pace(2048, SLOWDOWN), Device(0.002, 0.0, token_s), 0, 60)[30:]
    fits = min(2048.0, (MAX_STEP_S - 0.002) / token_s)
    assert 0.8 * fits < min(tokens for tokens, _ in settled)
    assert max(tokens for tokens, _ in settled) < 1.05 * fits


def test_a_slow_device_computes_prompts_in_pieces_that_pay() -> None:
    settled = run(Pace(2048, SLOWDOWN), Device(0.002, 0.0, 0.1), 0, 60)[30:]
    assert {tokens for tokens, _ in settled} == {MIN_TOKENS_WITHOUT_ANSWERS}
    assert Pace(64, SLOWDOWN).tokens_beside(0, encoding=False) == 64


def test_a_short_prompt_shows_nothing_about_long_ones() -> None:
    pace = Pace(2048, SLOWDOWN)
    before = pace.tokens_beside(0, encoding=False)
    for _ in range(50):
        pace.note(0, 3, 0.001, encoded=False)
    assert pace.tokens_beside(0, encoding=False) == before


def test_prompts_always_get_on() -> None:
    """However slow they are."""
    found = run(Pace(2048, 1.001), Device(0.001, 0.0, 1.0), 1, 100)
    assert sum(tokens >= MIN_TOKENS for tokens, _ in found) > 90


def test_images_share_with_prompts() -> None:
    pace = Pace(2048, SLOWDOWN)
    for _ in range(3):
        assert pace.encode_s_beside(4, 0) == 0.0, "too little is known yet"
        pace.note(4, 0, 0.01, encoded=False)
    assert pace.encode_s_beside(4, 0) == pytest.approx(0.01)
    assert pace.encode_s_beside(4, 100) == pytest.approx(0.005)
    for _ in range(3):
        pace.note(64, 0, 10.0, encoded=False)
    assert pace.encode_s_beside(64, 0) == MAX_STEP_S
    assert pace.encode_s_beside(0, 0) == MAX_STEP_S
    assert pace.encode_s_beside(0, 100) == MAX_STEP_S / 2
    for decodes in (0, 4):
        alone = pace.tokens_beside(decodes, encoding=False)
        assert pace.tokens_beside(decodes, encoding=True) == alone // 2
