"""`qwenvl check`: what it says and its exit status, on configurations without weights."""

from __future__ import annotations

import json
from pathlib import Path
import re
import shlex

import pytest

from inference_service.cli import build_parser, main
from inference_service.commands.cards import parse_card
from inference_service.commands.check import DOES_NOT_FIT, FITS, USAGE, parse_size
from inference_service.commands.devices import find_device, may_exist
from inference_service.families.footprint import (
    GRAPH_BYTES,
    STEP_RESERVE_BYTES,
    encoder_cache_bytes,
    footprint,
)
from inference_service.families.placement import place_layers
from inference_service.families.registry import load_spec
from inference_service.families.tables import layer_parameters
from tests.support.published_configs import published_files, write_files
from tests.support.tiny_qwen_vl import build_checkpoint


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def configured(tmp_path: Path) -> str:
    """Qwen3-VL-4B without its weights."""
    return str(write_files(tmp_path, published_files()))


@pytest.fixture
def two_gpus(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver with GPUs of 24 and 8 GiB, of which 1 GiB is taken."""
    directory = tmp_path_factory.mktemp("driver")
    program = directory / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        '--id=0|--id=GPU-big) echo "NVIDIA X, 24576, 1024" ;;\n'
        '--id=1) echo "NVIDIA Y, 8192, 1024" ;;\n'
        "*) echo 'No devices were found'; exit 6 ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")


def test_parts_weights_and_room(configured: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", configured, "--gpu-memory", "24GiB", "--max-model-len", "32768"]) == FITS
    text = capsys.readouterr().out
    for said in (
        "qwen3_vl      4.44 B      4437815808",
        "vision     0.31 B       306242560",
        "language   4.02 B      4022468096",
        "8.27 GiB (8.88 GB) in bfloat16",
        "144.00 KiB per token",
        "= 2 requests of 32768 tokens",
    ):
        assert said in text
    *_, verdict, command = text.splitlines()
    assert verdict == "fits"
    assert command == (
        f"qwenvl serve {configured} --device cuda:0 --dtype bfloat16 --max-model-len 32768"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--gpu-memory", "8GB"], DOES_NOT_FIT, "the weights alone take 8.27 GiB"),
        (["--gpu-memory", "10.5GiB"], DOES_NOT_FIT, "too little memory is left for the KV cache"),
        (["--gpu-memory", "11GiB", "--gpu-memory-utilization", "1"], DOES_NOT_FIT, "cache-tokens"),
        (["--gpu-memory", "12GiB", "--gpu-memory-utilization", "1"], FITS, "1 request of"),
        (
            ["--gpu-memory", "11GiB", "--encoder-cache-tokens", "2048"],
            FITS,
            "1.34 GiB for images",
        ),
        (["--gpu-memory", "32GiB", "--dtype", "float32"], FITS, "16.53 GiB (17.75 GB) in float32"),
        (["--gpu-memory", "8GiB", "--device", "cuda:0,cuda:1"], FITS, "2 GPUs: 14.40 GiB usable"),
        (["--gpu-memory", "24GiB", "--max-model-len", "262144"], DOES_NOT_FIT, "does not fit"),
        (["--gpu-memory", "80GiB", "--max-model-len", "262144"], FITS, "1 request of 262144"),
    ],
)
def test_the_exit_status_says_whether_the_model_fits(
    configured: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    says: str,
) -> None:
    assert main(["check", configured, *arguments]) == status
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-model-len", "262145"], "exceeds the model's context window of 262144 tokens"),
        (["--max-model-len", "0"], "--max-model-len"),
        (["--dtype", "int3"], "--dtype"),
        (["--device", "cuda:7"], "--device=cuda:7 (QWENVL_DEVICE): was not found"),
    ],
)
def test_wrong_usage(
    configured: str,
    capsys: pytest.CaptureFixture[str],
    two_gpus: None,
    arguments: list[str],
    says: str,
) -> None:
    assert main(["check", configured, *arguments]) == USAGE
    assert says in capsys.readouterr().err


def last_command(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return shlex.split(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "devices", "length"),
    [
        (["--gpu", "h100"], "cuda:0", 262144),
        (["--gpu", "NVIDIA L4"], "cuda:0", None),
        (["--gpu-memory", "8GiB"], "cuda:0,cuda:1", None),
        (["--gpu-memory", "24GiB", "--max-model-len", "262144"], "cuda:0,cuda:1,cuda:2", 262144),
        (["--gpu-memory", "24GiB", "--device", "cuda:3"], "cuda:3", None),
    ],
)
def test_the_last_line_serves_on_the_fewest_gpus_with_the_longest_context(
    configured: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    devices: str,
    length: int | None,
) -> None:
    main(["check", configured, *arguments])
    words = last_command(capsys)
    assert words[:3] == ["qwenvl", "serve", configured]
    flags = vars(build_parser().parse_args(words[1:]))
    assert flags["device"] == devices
    longest = int(flags["max_model_len"])
    assert length in (None, longest)
    card = arguments[:2]

    def status(max_model_len: int, gpus: str) -> int:
        asked = ["--device", gpus, "--max-model-len", str(max_model_len)]
        return main(["check", configured, *card, *asked])

    assert status(longest, devices) == FITS
    if length is None:
        assert status(longest + 16, devices) == DOES_NOT_FIT
    fewer = devices.rpartition(",")[0]
    if fewer:
        assert status(length or 2048, fewer) == DOES_NOT_FIT


def test_the_command_repeats_the_flags_that_matter(
    configured: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--gpu-memory-utilization", "0.5", "--encoder-cache-tokens", "2048"]
    main(["check", configured, "--gpu", "a100-80gb", *flags, "--dtype", "float16"])
    text = " ".join(last_command(capsys))
    assert "--gpu-memory-utilization 0.5" in text
    assert "--encoder-cache-tokens 2048" in text
    assert "--dtype float16" in text


def test_this_machines_gpus_are_counted(
    configured: str, two_gpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", configured, "--max-model-len", "100000"]) == DOES_NOT_FIT
    assert "--device cuda:0,cuda:1" in " ".join(last_command(capsys))
    assert main(["check", configured, "--max-model-len", "262144"]) == DOES_NOT_FIT
    assert capsys.readouterr().out.splitlines()[-1].startswith("does not fit")  # on both neither


def test_programs_get_json(configured: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", configured, "--gpu", "l4", "--json"]) == FITS
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["total"] == 4_437_815_808
    assert found["device"] == {
        "name": "l4",
        "gpus": 1,
        "total_bytes": 23034 * 2**20,
        "usable_bytes": int(23034 * 2**20 * 0.9),
    }
    assert (found["fits"], found["verdict"]) == (True, "fits")
    assert found["command"].startswith("qwenvl serve ")
    assert main(["check", configured, "--gpu-memory", "8GiB", "--json"]) == DOES_NOT_FIT
    assert json.loads(capsys.readouterr().out)["command"] is not None  # on several
    large = str(GOLDEN / "configs" / "Qwen2.5-VL-72B-Instruct")
    assert main(["check", large, "--gpu-memory", "8GiB", "--json"]) == DOES_NOT_FIT
    assert json.loads(capsys.readouterr().out)["command"] is None


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("h100", 79),
        ("H100-80GB", 79),
        ("NVIDIA H100 80GB HBM3", 79),
        ("a100", 80),
        ("A100-SXM4-40GB", 40),
        ("rtx 4090", 23),
        ("4090", 23),
        ("NVIDIA GeForce RTX 3090", 24),
        ("Tesla T4", 15),
        ("L40S", 44),
    ],
)
def test_cards_have_many_names(name: str, gib: int) -> None:
    assert parse_card(name)[1] >> 30 == gib


@pytest.mark.parametrize("words", [["--gpu", "h1000"], ["--gpu", "h100", "--gpu-memory", "8GiB"]])
def test_a_wrong_card_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    assert ended.value.code == USAGE
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "did you mean h100?" in message or "not allowed with" in message


def test_a_directory_without_a_model_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path)]) == USAGE
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert main(["check", str(tmp_path)]) == USAGE
    assert "'bert' is not supported" in capsys.readouterr().err


# Parameters as people say them, and what an operator with one card wants to know.
PUBLISHED = {
    "Qwen2-VL-2B-Instruct": ("qwen2_vl      2.21 B", FITS, FITS),
    "Qwen2-VL-7B-Instruct": ("qwen2_vl      8.29 B", FITS, FITS),
    "Qwen2-VL-72B-Instruct": ("qwen2_vl     73.41 B", DOES_NOT_FIT, DOES_NOT_FIT),
    "Qwen2.5-VL-3B-Instruct": ("qwen2_5_vl    3.75 B", FITS, FITS),
    "Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl    8.29 B", FITS, FITS),
    "Qwen2.5-VL-32B-Instruct": ("qwen2_5_vl   33.45 B", DOES_NOT_FIT, FITS),
    "Qwen2.5-VL-72B-Instruct": ("qwen2_5_vl   73.41 B", DOES_NOT_FIT, DOES_NOT_FIT),
    "Qwen3-VL-2B-Instruct": ("qwen3_vl      2.13 B", FITS, FITS),
    "Qwen3-VL-4B-Instruct": ("qwen3_vl      4.44 B", FITS, FITS),
    "Qwen3-VL-8B-Instruct": ("qwen3_vl      8.77 B", FITS, FITS),
    "Qwen3-VL-32B-Instruct": ("qwen3_vl     33.36 B", DOES_NOT_FIT, FITS),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    says, on_24_gib, on_80_gib = PUBLISHED[name]
    directory = str(GOLDEN / "configs" / name)
    asked = ["check", directory, "--max-model-len", "8192"]
    assert main([*asked, "--gpu-memory", "24GiB"]) == on_24_gib
    assert capsys.readouterr().out.startswith(says)
    assert main([*asked, "--gpu-memory", "80GiB"]) == on_80_gib


def test_qwen_vl_of_2023(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tutorial's 1.9 B + 0.08 B + 7.7 B = 9.6 B, and its 18.74 GB in float16."""
    small = GOLDEN / "qwen_vl_v1" / "configs" / "B"
    config = json.loads((small / "config.json").read_text())
    config |= {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    config |= {"kv_channels": 128, "intermediate_size": 22016, "seq_length": 2048}
    config["visual"] |= {"heads": 16, "image_size": 448, "layers": 48, "output_dim": 4096}
    config["visual"] |= {"width": 1664}
    (tmp_path / "config.json").write_text(json.dumps(config))
    generation = (small / "generation_config.json").read_text()
    (tmp_path / "generation_config.json").write_text(generation)
    assert main(["check", str(tmp_path), "--dtype", "float16", "--gpu-memory", "24GiB"]) == FITS
    text = capsys.readouterr().out
    assert re.findall(r"^\W*(\w+) +([\d.]+ B)", text, re.MULTILINE) == [
        ("qwen_vl", "9.66 B"),
        ("vision", "1.86 B"),
        ("adapter", "0.08 B"),
        ("language", "7.72 B"),
    ]
    assert str(19_313_870_336 // 2) in text
    assert "17.99 GiB (19.31 GB) in float16" in text
    said = "19.42 GiB (20.85 GB) without KV cache; the Qwen-VL tutorial states 18.74 GB (GiB)"
    assert said in text


@pytest.mark.parametrize("size", ["24", "GiB", "-1GiB", "24XB", "0GiB", "nanGB"])
def test_a_wrong_size_is_wrong_usage(size: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--gpu-memory", size])
    assert ended.value.code == USAGE


def test_sizes() -> None:
    assert parse_size("24GiB") == 24 * 2**30
    assert parse_size("1.5 TB") == 1_500_000_000_000


def test_the_demo_model_fits_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cpu"]) == FITS
    text = capsys.readouterr().out
    assert "in float32" in text
    assert text.splitlines()[-1] == (
        "qwenvl serve --device cpu --dtype float32 --max-model-len 4096"
    )


def test_the_gpu_of_this_machine(
    configured: str, two_gpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", configured]) == FITS
    assert "cuda:0 NVIDIA X: 20.60 GiB usable of 24.00 GiB" in capsys.readouterr().out
    assert main(["check", configured, "--device", "cuda:1"]) == DOES_NOT_FIT


def test_a_gpu_that_nvidia_smi_does_not_list_may_be_there(two_gpus: None) -> None:
    assert not may_exist("cuda:7", {})
    assert not may_exist("cuda", {"CUDA_VISIBLE_DEVICES": ""})
    assert may_exist("cuda", {"CUDA_VISIBLE_DEVICES": "MIG-5c89"})
    assert may_exist("cpu", {})


def test_visible_devices_are_counted_as_the_engine_counts_them(two_gpus: None) -> None:
    def total(wanted: str, visible: str) -> int | None:
        device = find_device(wanted, {"CUDA_VISIBLE_DEVICES": visible})
        return None if device is None else device.total_bytes >> 30

    assert total("cuda", "1,0") == 8
    assert total("cuda:1", "1, GPU-big") == 24
    assert total("cuda:2", "1,0") is None
    assert total("cuda:0,cuda:1", "1,0") == 32
    assert total("cuda:0,cuda:2", "1,0") is None
    hidden = find_device("auto", {"CUDA_VISIBLE_DEVICES": ""})
    assert hidden is not None
    assert not hidden.is_gpu


CARDS = ("t4", "l4", "v100-32gb", "a100", "h20", "rtx-3060", "rtx-5090")


@pytest.mark.parametrize("name", ["Qwen2.5-VL-32B-Instruct", "Qwen2.5-VL-72B-Instruct"])
@pytest.mark.parametrize("card", CARDS)
def test_the_command_for_several_gpus_fits_whole_layers(
    name: str, card: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each GPU has whole layers, so that some of its memory stays empty."""
    directory = GOLDEN / "configs" / name
    main(["check", str(directory), "--gpu", card])
    words = last_command(capsys) if card not in ("t4", "rtx-3060") or "32B" in name else []
    if not words:
        assert capsys.readouterr().out.endswith("nor does it fit on 8 such GPUs\n")
        return
    flags = vars(build_parser().parse_args(words[1:]))
    count = len(flags["device"].split(","))
    spec = load_spec(directory)
    layers, layer_bytes = spec.decoder.num_layers, layer_parameters(spec) * 2
    size = footprint(spec, flags["dtype"])
    beside = size.weight_bytes - layers * layer_bytes + encoder_cache_bytes(spec, 16384, 2)
    room = [int(parse_card(card)[1] * 0.9) - STEP_RESERVE_BYTES] * count
    if count == 1:
        return
    placement = place_layers(
        [str(number) for number in range(count)],
        room,
        num_layers=layers,
        layer_bytes=layer_bytes,
        other_bytes=beside,
        page_bytes=16 * size.kv_bytes_per_token // layers,
    )
    assert placement.pages * 16 >= int(flags["max_model_len"])


@pytest.mark.parametrize("assumed", [["--gpu", "h100"], ["--gpu-memory", "80GiB"]])
def test_a_cpu_is_no_gpu(
    configured: str, capsys: pytest.CaptureFixture[str], assumed: list[str]
) -> None:
    assert main(["check", configured, "--device", "cpu", *assumed]) == USAGE
    assert "--device=cpu (QWENVL_DEVICE): is no GPU, but --gpu or" in capsys.readouterr().err


def test_a_size_of_the_cache_that_is_set_counts(
    configured: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWENVL_NUM_KV_PAGES", "100")
    assert main(["check", configured, "--gpu", "h100"]) == DOES_NOT_FIT
    assert "does not fit: --num-kv-pages holds 1600 tokens" in capsys.readouterr().out
    monkeypatch.setenv("QWENVL_NUM_KV_PAGES", "1000")
    assert main(["check", configured, "--gpu", "h100"]) == FITS
    assert "16000 tokens of KV cache = 1 request of 16000" in capsys.readouterr().out


def test_graphs_count(
    configured: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = []
    for setting in ("auto", "off"):
        monkeypatch.setenv("QWENVL_CUDA_GRAPHS", setting)
        assert main(["check", configured, "--gpu", "l4", "--json"]) == FITS
        cached.append(json.loads(capsys.readouterr().out)["other_bytes"])
    assert 11 * GRAPH_BYTES < cached[0] - cached[1] < 2**29


@pytest.mark.parametrize("name", ["config.json", "x/model.safetensors"])
def test_a_file_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where it looks like the id of a repository."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}")
    assert main(["check", name]) == USAGE
    assert f"{name} is a file; name the directory of the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "has_head", "told"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_head_that_may_differ_from_the_embedding_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, flag: bool, has_head: bool, told: bool
) -> None:
    """Whether it does, only loading the weights tells."""
    build_checkpoint(tmp_path, family="qwen3_vl", tied=not has_head)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = flag
    path.write_text(json.dumps(config))
    assert main(["check", str(tmp_path), "--device", "cpu"]) == FITS
    lines = capsys.readouterr().out.splitlines()
    decoder = load_spec(tmp_path).decoder
    count = decoder.vocab_size * decoder.hidden_size
    assert any(f"has {count} parameters more" in line for line in lines) == told
    assert lines[-1].startswith("qwenvl serve")
    main(["check", str(tmp_path), "--device", "cpu", "--json"])
    assert bool(json.loads(capsys.readouterr().out)["remark"]) == told


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"model.Q4_K_M.gguf": b"GGUF"}, "GGUF files are not read"),
        ({"model.safetensors": b"x"}, "only weights: copy the other files of the model"),
        ({"config.json": b"\x81\xfe{}"}, "config.json is not valid JSON: its byte 1 is not UTF-8"),
        ({"config.json": b'{"a": "\xe9"}'}, "its byte 8 is not UTF-8"),
        ({"config.json": b"[]"}, "config.json must contain a JSON object"),
    ],
)
def test_odd_directories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], says: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert main(["check", str(tmp_path)]) == USAGE
    assert says in capsys.readouterr().err
