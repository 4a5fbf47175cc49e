"""`qwenvl chat` against a front on a real socket, whose engine answers with the question."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
import signal
import sys

from PIL import Image
import pytest

from inference_service.cli import main
from tests.grpc_api.asking import until
from tests.grpc_api.conftest import OpenService, Service
from tests.support.images import draw


BOX = '{"bbox_2d": [250, 250, 750, 750], "label": "x"}'

# A shell starts its background jobs with SIGINT ignored, and their children inherit that.
INTERRUPTIBLE = """
import signal, sys
from inference_service.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    path.write_bytes(draw("red", "circle").png)
    return str(path)


async def chat(service: Service, *arguments: str) -> int:
    return await asyncio.to_thread(main, ["chat", "--grpc-target", service.target(), *arguments])


async def started(service: Service, *arguments: str) -> asyncio.subprocess.Process:
    """The command as a process that can be interrupted, even where these tests run as a job in the background."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "chat"]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *command,
        *("--grpc-target", service.target(), *arguments),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def prompt_of(service: Service, index: int = -1) -> str:
    ids = service.engine.requests[index].prompt_token_ids
    return service.engine._tokenizer.decode(ids, skip_special_tokens=False)


async def test_a_question_about_images(
    service: Service, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--image", image, "--image", image, "--system", "Be kind.", "这是什么?")
    assert await chat(service, *arguments, "--temperature", "0", "--max-tokens", "100") == 0
    assert capsys.readouterr().out == "这是什么?\n"
    [asked] = service.engine.requests
    assert len(asked.images) == 2
    assert (asked.sampling.temperature, asked.sampling.max_tokens) == (0, 100)
    assert "system\nBe kind." in prompt_of(service)


async def test_what_a_model_says_does_not_steer_the_terminal(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await chat(service, "a\x1b[2J\x07b\x9bc\td") == 0
    assert capsys.readouterr().out == "a[2Jbc\td\n"


async def test_boxes_are_drawn_on_the_image(
    service: Service, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    assert await chat(service, "--image", image, "--draw", str(out), BOX) == 0
    captured = capsys.readouterr()
    assert captured.out == BOX + "\n"
    assert f"{out}: 1 box drawn" in captured.err
    with Image.open(image) as before, Image.open(out) as after:
        assert after.size == before.size
        edge = (before.width // 4, before.height // 2)
        assert after.getpixel(edge) != before.convert("RGB").getpixel(edge)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--image", "{image}", "--draw", "{tmp}/out.png", "no box"), "contains no boxes"),
        (("--image", "{image}", "--draw", "{tmp}/out.no", BOX), "cannot be written"),
        (("--draw", "{tmp}/out.png", "a question"), "needs a local image file as the last image"),
        (("--image", "{tmp}/no.png", "x"), "no.png"),
        (("--image", "{tmp}", "x"), "Is a directory"),
        (("--model", "other", "x"), "'other' is not served here"),
        (("--temperature", "9", "x"), "temperature is 9, but must be between 0 and 2"),
        (("--api-key-file", "{tmp}/no-key", "x"), "no-key"),
        (
            ("--image", "{image}", "--draw", "{tmp}/out.png", "--font", "{image}", BOX),
            "not a usable font",
        ),
    ],
)
async def test_what_goes_wrong_is_said_in_a_line(
    service: Service,
    image: str,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    directory = Path(image).parent
    words = [word.replace("{image}", image).replace("{tmp}", str(directory)) for word in arguments]
    assert await chat(service, *words) == 1
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert not (directory / "out.png").exists()


def test_no_service_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--grpc-target", "127.0.0.1:9", "x"]) == 1
    assert (
        "no service is reachable at 127.0.0.1:9; start one with: qwenvl serve"
        in capsys.readouterr().err
    )


async def test_the_key_comes_from_a_file_or_the_environment(
    open_service: OpenService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("secret\nanother\n")
    service = await open_service(api_key_file=str(tmp_path / "keys"))
    monkeypatch.delenv("QWENVL_API_KEY", raising=False)
    assert await chat(service, "x") == 1
    assert await chat(service, "--api-key-file", str(tmp_path / "keys"), "x") == 0
    monkeypatch.setenv("QWENVL_API_KEY", "another")
    assert await chat(service, "x") == 0


async def test_a_dialogue_remembers(service: Service, image: str) -> None:
    process = await started(service, "--image", image)
    lines = f"one\n\n/image {image}.no\ntwo\n/new\n/image {image}\nthree\nfour\n"
    out, err = await asyncio.wait_for(process.communicate(lines.encode()), 60)
    assert process.returncode == 0
    assert out.decode().replace("> ", "").split() == ["one", "three", "four"]
    assert "cat.png.no" in err.decode()  # the question about it is forgotten
    assert [len(asked.images) for asked in service.engine.requests] == [1, 1, 1]
    assert prompt_of(service).count("three") == 2  # asked and answered
    assert "one" not in prompt_of(service)


async def test_an_image_belongs_to_one_question_whatever_becomes_of_it(
    service: Service, image: str, tmp_path: Path
) -> None:
    process = await started(service, "--draw", str(tmp_path / "out.unknown"))
    said = f"/image {tmp_path / 'none.png'}\nfirst\n/image {image}\n{BOX}\nthird\n"
    _, errors = await asyncio.wait_for(process.communicate(said.encode()), 60)
    assert b"none.png" in errors
    assert b"cannot be written" in errors
    assert [len(request.images) for request in service.engine.requests] == [1, 1]
    assert "third" in prompt_of(service)


async def test_boxes_are_of_the_last_image_that_the_service_took(
    service: Service, image: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out.png"
    process = await started(service, "--image", image, "--draw", str(out))
    said = f"first\n/image {tmp_path / 'broken.png'}\nsecond\n{BOX}\n"
    _, errors = await asyncio.wait_for(process.communicate(said.encode()), 60)
    assert f"{out}: 1 box drawn" in errors.decode()
    with Image.open(image) as before, Image.open(out) as after:
        assert after.size == before.size


async def test_ctrl_c_stops_the_answer_and_not_the_dialogue(service: Service) -> None:
    service.engine.hold_at = 3
    process = await started(service)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"question\n")
    await process.stdin.drain()
    said = b""
    while b"que" not in said:
        said += await asyncio.wait_for(process.stdout.read(100), 60)
    process.send_signal(signal.SIGINT)
    await until(lambda: bool(service.engine.aborted))
    service.engine.hold_at = None
    out, _ = await asyncio.wait_for(process.communicate(b"again\n"), 60)
    assert process.returncode == 0
    assert "again" in out.decode()
    assert "<|im_start|>assistant\nque<|im_end|>" in prompt_of(service)


async def test_ctrl_c_ends_a_single_question(service: Service) -> None:
    service.engine.hold_at = 3
    process = await started(service, "question")
    await until(lambda: bool(service.engine.live))
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readexactly(3), 60) == b"que"
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    await until(lambda: bool(service.engine.aborted))
