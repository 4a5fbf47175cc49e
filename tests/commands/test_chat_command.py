"""`qwenvl chat` against a front on a real socket, whose engine answers with the question."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
import re
import signal
import socketserver
import sys
import threading
from urllib.parse import quote

from PIL import Image
import pytest

from inference_service.cli import main
from inference_service.commands.converse import _completions
from qwenvl.testing import FakeServer, Reply
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


async def started(
    service: Service, *arguments: str, **environment: str
) -> asyncio.subprocess.Process:
    """The command as a process that can be interrupted, even where these tests run as a job in the background."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "chat"]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *command,
        *("--grpc-target", service.target(), *arguments),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"}
        | environment,
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


def test_reasoning_is_no_part_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(Reply("Yes.", reasoning="Hm.")) as server:
        assert main(["chat", "--grpc-target", server.target, "Well?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Yes.\n"
    assert captured.err.startswith("Hm.\n")


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
        (("--image", "{image}", "--draw", "{tmp}/out.no", BOX), "that ends with .png, .jpg or"),
        (("--image", "{image}", "--draw", "{tmp}/no/x.png", BOX), "/x.png: there is no directory"),
        (("--image", "http://h/x.png", "--draw", "{tmp}/out.png", BOX), "needs a local image file"),
        (("--image", "", "x"), "the name of an image is empty"),
        (("--image", "/dev/null", "x"), "/dev/null: the image is empty"),
        (("--image", "/dev/zero", "x"), "/dev/zero has more than 32 MiB, the maximum size"),
        (("--image", "data:image/png;base64,@", "x"), "data:image/png;base64,@: the base64 data"),
        (("--draw", "{tmp}/out.png", "a question"), "needs a local image file as the last image"),
        (("--image", "{tmp}/no.png", "x"), "no.png"),
        (("--image", "{tmp}", "x"), ": Is a directory\n"),
        (("--model", "other", "x"), "'other' is not served here"),
        (("--api-key-file", "{tmp}/no-key", "x"), "no-key"),
        (("--api-key-file", "{image}", "x"), "cat.png: is not text"),
        (("--image", "file://other/cat.png", "x"), "is a file of another machine, other"),
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


class NotHttp2(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(
            b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\n\r\n"
        )


def test_the_port_of_the_rest_api(capsys: pytest.CaptureFixture[str]) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), NotHttp2) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.server_address[1]
            assert main(["chat", "--grpc-target", f"127.0.0.1:{port}", "x"]) == 1
        finally:
            server.shutdown()
            thread.join()
    assert f"127.0.0.1:{port} speaks HTTP/1.1, not gRPC" in capsys.readouterr().err


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


async def talk(service: Service, *lines: bytes | str, **environment: str) -> tuple[str, str]:
    """What a conversation answers and what it says besides."""
    process = await started(service, **environment)
    text = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    out, err = await asyncio.wait_for(process.communicate(text), 60)
    assert process.returncode == 0, err.decode()
    return out.decode().replace("> ", "").replace(". ", ""), err.decode()


async def test_questions_of_several_lines(service: Service) -> None:
    out, _ = await talk(service, '"""one', "", 'two"""', "three \\", "four", '"""five', "six")
    assert out == "one\n\ntwo\nthree \nfour\nfive\nsix\n\n"


async def test_bytes_that_are_no_text_end_nothing(service: Service) -> None:
    out, err = await talk(service, b"\xff\xfe caf\xe9", b"\x00\x1b", "\u732b", LC_ALL="C.UTF-8")
    assert out.startswith("\ufffd\ufffd caf\ufffd\n")
    assert "\u732b\n" in out
    assert "Traceback" not in err


async def test_a_terminal_without_the_characters_ends_nothing(service: Service) -> None:
    out, err = await talk(service, "\u732b caf\u00e9", "next", PYTHONIOENCODING="ascii")
    assert "next\n" in out
    assert "Traceback" not in err


async def test_an_argument_that_is_no_text(service: Service) -> None:
    process = await started(service, os.fsdecode(b"caf\xe9 \xff"), LC_ALL="C.UTF-8")
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")
    assert out.decode() == "caf\ufffd \ufffd\n"


async def test_commands(service: Service, image: str) -> None:
    _, err = await talk(service, "/help", "/model", "/model no", "/model echo-too", "/set", "/fly")
    for said in (
        "/image FILE...",
        "/exit",
        "* echo\n",
        "no is not served here; served: echo echo-too",
    ):
        assert said in err
    assert "* echo-too\n" in err
    assert "temperature none\n" in err
    assert "unknown command /fly; /help lists the commands" in err


async def test_commands_in_other_spellings(service: Service, image: str) -> None:
    """None of them becomes a question."""
    out, err = await talk(
        service, "/MODEL\techo-too", "/Set  max_tokens 3", f"/IMAGE {image}", "/Exit"
    )
    assert out.strip("> \n") == ""
    for said in ("* echo-too\n", "max_tokens 3\n", "image 1: "):
        assert said in err
    assert "tokens/s" not in err
    assert service.engine.requests == []


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
async def test_the_end(service: Service, word: str) -> None:
    out, _ = await talk(service, "one", word, "two")
    assert out.split() == ["one"]


async def test_what_only_looks_like_a_command_is_a_question(service: Service) -> None:
    out, _ = await talk(service, "/etc/hosts is what?", "/ is what?")
    assert out == "/etc/hosts is what?\n/ is what?\n\n"


async def test_settings(service: Service) -> None:
    _, err = await talk(
        service,
        *("/set temperature 0", "/set max-tokens=7", "/set seed 3", "/set ignore_eos off"),
        *("/set top_k many", "/set colour red", "/set top_p", "/set system Be kind."),
        *("/set temperature nan", "/set min_p 7", "one"),
        *("/set temperature none", "/new", "two"),
    )
    first, second = service.engine.requests
    assert (first.sampling.temperature, first.sampling.max_tokens, first.sampling.seed) == (0, 7, 3)
    assert second.sampling.temperature > 0
    assert "Be kind." in prompt_of(service, 0)
    assert "top_k cannot be many: it is an integer from -1 to" in err
    assert "temperature cannot be nan: it is a number from 0 to 2" in err
    assert "min_p cannot be 7: it is a number from 0 to 1" in err
    assert "unknown setting colour; there are: temperature" in err
    assert "name a value: /set top_p VALUE" in err


async def test_files_of_a_drawing_are_checked_when_they_are_set(
    service: Service, tmp_path: Path
) -> None:
    _, err = await talk(
        service,
        *(f"/set draw {tmp_path}/x.no", f"/set draw {tmp_path}/no/x.png", "/set font /etc/passwd"),
        *("/image /dev/null", "/set"),
    )
    assert "x.no: name a file that ends with .png" in err
    assert "x.png: there is no directory" in err
    assert "/etc/passwd: not a usable font" in err
    assert "not attached: /dev/null: the image is empty" in err
    assert "draw none\nfont none\n" in err


async def test_the_end_of_an_answer_tells_its_speed(service: Service) -> None:
    _, err = await talk(service, "a question of some length")
    [line] = [line for line in err.splitlines() if line.startswith("[")]
    assert re.fullmatch(r"\[\d+ tokens, [\d.]+ tokens/s, first after [\d.]+ s\]", line)


async def test_images_however_they_are_written(service: Service, tmp_path: Path) -> None:
    directory = tmp_path / "a b"
    directory.mkdir()
    name = "it's \u732b \u00e9.png"
    path = directory / name
    path.write_bytes(draw("red", "circle").png)
    words = [
        str(path),
        f'"{path}"',
        str(path).replace(" ", "\\ ").replace("'", "\\'"),
        path.as_uri(),
        f"file://localhost{quote(str(path))}",
        f"~/a\\ b/{name}".replace("it's ", "it\\'s\\ ").replace("\u732b ", "\u732b\\ "),
        f"'{directory}/it'\\''s \u732b \u00e9.png'",
    ]
    _, err = await talk(
        service, *(f"/image {word}" for word in words), "/image", "q", HOME=str(tmp_path)
    )
    told = [line for line in err.splitlines() if line.startswith("image ")]
    assert len(told) == len(words)
    for number, line in enumerate(told, 1):
        assert re.fullmatch(rf"image {number}: .*\.png, 256 x 256 pixels, \d+ tokens", line), line
    assert "name a file or a URL: /image FILE" in err
    assert len(service.engine.requests[-1].images) == len(words)


async def test_an_image_that_the_service_refuses_is_not_attached(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    _, err = await talk(service, f"/image {tmp_path / 'broken.png'}", "question")
    assert "not attached: " in err
    assert [len(asked.images) for asked in service.engine.requests] == [0]


async def test_labels_that_no_font_has_are_numbered_in_a_legend(
    service: Service, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    box = BOX.replace('"x"', '"\u732b"')
    assert await chat(service, "--image", image, "--draw", str(out), box) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{out}: 1 box drawn",
        "labels that the font lacks (--font FILE names another one):",
        "1 = \u732b",
    ]


def test_tab_completes_commands_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat one.png").touch()
    (tmp_path / "cats").mkdir()
    (tmp_path / "dog[1].png").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert _completions("/im") == ["/image "]
    assert _completions("/") == ["/image ", "/new ", "/model ", "/set ", "/help ", "/exit "]
    assert _completions("ca") == []
    assert _completions("") == []
    assert _completions("/image c") == ["/image cat one.png", "/image cats/"]
    assert _completions("/image ~/dog[") == [f"/image {tmp_path}/dog[1].png"]
    assert _completions("/set t") == []


async def test_a_dialogue_remembers(service: Service, image: str) -> None:
    process = await started(service, "--image", image)
    lines = f"one\n\n/image {image}.no\ntwo\n/new\n/image {image}\nthree\nfour\n"
    out, err = await asyncio.wait_for(process.communicate(lines.encode()), 60)
    assert process.returncode == 0
    assert out.decode().replace("> ", "").split() == ["one", "two", "three", "four"]
    assert "not attached: " in err.decode()
    assert "cat.png.no" in err.decode()
    # Those of a conversation are sent again with each of its questions.
    assert [len(asked.images) for asked in service.engine.requests] == [1, 1, 1, 1]
    assert prompt_of(service).count("three") == 2  # asked and answered
    assert "one" not in prompt_of(service)


async def test_an_image_belongs_to_one_question_whatever_becomes_of_it(
    service: Service, image: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    out.symlink_to(tmp_path / "no" / "out.png")  # looks usable until it is written
    process = await started(service, "--draw", str(out))
    said = f"/image {tmp_path / 'none.png'}\nfirst\n/image {image}\n{BOX}\nthird\n"
    _, errors = await asyncio.wait_for(process.communicate(said.encode()), 60)
    assert b"none.png" in errors
    assert b"cannot be written" in errors
    assert [len(request.images) for request in service.engine.requests] == [0, 1, 1]
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
