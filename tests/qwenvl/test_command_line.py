"""Command lines: whole flags only, errors in one line with what was probably meant."""

from __future__ import annotations

import pytest

from inference_service.cli import build_parser, main
from inference_service.front import main as inference_service
from rest_adapter.__main__ import main as rest_adapter


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["serve", "--max-num-seq", "3"],
            "unknown flag --max-num-seq, did you mean --max-num-seqs?",
        ),
        (["serve", "--max-num", "3"], "unknown flag --max-num"),
        (["serve", "--grpc-adress=x:1"], "--grpc-adress, did you mean --grpc-address?"),
        (["serve", "a", "b"], "unexpected argument 'b'"),
        (["check", "--gpu-mem", "24GiB"], "unknown flag --gpu-mem, did you mean --gpu-memory?"),
        (["chat", "--temp", "1", "x"], "unknown flag --temp"),
        (["--verbose", "serve"], "unknown flag --verbose"),
        (["server"], "invalid choice: 'server'"),
    ],
)
def test_flags_are_written_out(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert message.startswith("qwenvl")


@pytest.mark.parametrize(
    ("program", "name"),
    [(main, "qwenvl"), (inference_service, "inference-service"), (rest_adapter, "rest-adapter")],
)
def test_every_program_tells_its_version(
    program, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import version

    with pytest.raises(SystemExit) as ended:
        program(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{name} {version('qwen-vl-serving')}\n"
