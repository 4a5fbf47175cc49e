"""Settings from flags and environment, the same way for both programs."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TypeVar, get_args

import pytest

from inference_service.front import main
from inference_service.hub.clients import HUBS
from inference_service.settings import ServiceSettings
from qwenvl.flags import ENV_PREFIX, FlagSettings
from rest_adapter.settings import AdapterSettings


_Settings = TypeVar("_Settings", bound=FlagSettings)


def load(settings: type[_Settings], argv: list[str], environ: dict[str, str]) -> _Settings:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser)
    return settings.load(vars(parser.parse_args(argv)), environ)


@pytest.mark.parametrize("settings", [ServiceSettings, AdapterSettings])
def test_defaults_need_nothing(settings: type[FlagSettings]) -> None:
    assert load(settings, [], {}) == settings()


def test_a_flag_wins_over_the_variable() -> None:
    environ = {"QWENVL_MAX_NUM_SEQS": "3", "QWENVL_MAX_QUEUE": "7"}
    loaded = load(ServiceSettings, ["--max-num-seqs", "5"], environ)
    assert loaded.model_dump(include={"max_num_seqs", "max_queue"}) == {
        "max_num_seqs": 5,
        "max_queue": 7,
    }


def test_lists_are_words_after_the_flag_and_commas_in_the_variable() -> None:
    by_flag = load(ServiceSettings, ["--served-model-name", "a", "b"], {})
    by_variable = load(ServiceSettings, [], {"QWENVL_SERVED_MODEL_NAME": "a, b"})
    assert by_flag == by_variable
    assert by_flag.model_dump()["served_model_name"] == ("a", "b")


@pytest.mark.parametrize(
    ("flag", "written", "meant"),
    [
        ("log-level", "INFO", "info"),
        ("log-level", "Warning", "warning"),
        ("log-format", "JSON", "json"),
        ("dtype", "BFloat16", "bfloat16"),
        ("hub", "HuggingFace", "huggingface"),
        ("gpu-kernels", "OFF", "off"),
        ("cuda-graphs", "Off", "off"),
    ],
)
def test_the_case_of_a_choice_does_not_matter(flag: str, written: str, meant: str) -> None:
    name = flag.replace("-", "_")
    by_flag = load(ServiceSettings, [f"--{flag}", written], {})
    assert by_flag == load(ServiceSettings, [], {ENV_PREFIX + name.upper(): written})
    assert by_flag.model_dump()[name] == meant


def test_an_alias_is_the_same_setting() -> None:
    one = load(ServiceSettings, ["--max-tokens-default", "7"], {})
    assert one == load(ServiceSettings, ["--default-max-tokens", "7"], {})
    assert one == load(ServiceSettings, [], {"QWENVL_DEFAULT_MAX_TOKENS": "7"})
    assert one.model_dump()["default_max_tokens"] == 7


def test_a_card_is_named_by_its_number() -> None:
    assert load(ServiceSettings, ["--device", "cuda:2"], {}).model_dump()["device"] == "cuda:2"


def test_booleans_have_two_flags_and_a_variable() -> None:
    assert load(ServiceSettings, ["--no-enable-media-fetch"], {}) == load(
        ServiceSettings, [], {"QWENVL_ENABLE_MEDIA_FETCH": "false"}
    )


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"QWENVL_MAX_NUM_SEQS": "0"}, "--max-num-seqs"),
        ({"QWENVL_DEVICE": "toaster"}, "--device=toaster .QWENVL_DEVICE.: must be auto, cpu"),
        (
            {"QWENVL_DEVICE": "cuda:0,cpu"},
            "--device=cuda:0,cpu .*: must be .* several GPUs such as",
        ),
        ({"QWENVL_DEVICE": "cpu,cpu"}, "--device"),
        ({"QWENVL_DEVICE": "cuda:0,"}, "--device"),
        ({"QWENVL_DEVICE": "cuda:0,cuda:1,cuda:0"}, "--device=.*: names the same GPU twice"),
        ({"QWENVL_DTYPE": "int3"}, "--dtype"),
        ({"QWENVL_DEFAULT_TEMPERATURE": "2.5"}, "--default-temperature"),
        ({"QWENVL_GPU_MEMORY_UTILIZATION": "1.5"}, "--gpu-memory-utilization"),
    ],
)
def test_an_invalid_value_names_its_setting(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SystemExit, match=named):
        load(ServiceSettings, [], environ)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--allowed-media-domains", "not a host"), ("--allow-local-media-path", "/no/such/directory")],
)
def test_a_media_setting_that_cannot_be_kept_ends_the_start(flag: str, value: str) -> None:
    with pytest.raises(SystemExit, match="invalid settings"):
        main([flag, value])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--max-num-seqs", "0"],
            "--max-num-seqs=0 (QWENVL_MAX_NUM_SEQS): must be greater than or equal to 1",
        ),
        (
            ["--dtype", "int3"],
            "--dtype=int3 (QWENVL_DTYPE): must be 'auto', 'float32', 'float16' or 'bfloat16'",
        ),
        (
            ["--max-tokens-default", "x"],
            "--default-max-tokens=x (QWENVL_DEFAULT_MAX_TOKENS): must be a valid integer",
        ),
        (["--api-key-file", ""], "--api-key-file= (QWENVL_API_KEY_FILE): is empty"),
        (
            ["--grpc-address", "127.0.0.1:65536"],
            "--grpc-address=127.0.0.1:65536 (QWENVL_GRPC_ADDRESS): has port 65536, but a port is between 0 and 65535",
        ),
        (["--health-address", "127.0.0.1:-1"], "has port -1, but a port is between"),
    ],
)
def test_one_line_names_flag_value_variable_and_limit(flags: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as refused:
        load(ServiceSettings, flags, {})
    assert str(refused.value).startswith(says) or says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_password_is_not_shown() -> None:
    text = ServiceSettings.problem("media_proxy", "http://me:secret@proxy:99999", "is wrong")
    assert text == "--media-proxy=http://***@proxy:99999 (QWENVL_MEDIA_PROXY): is wrong"


@pytest.mark.parametrize(
    ("grpc", "admin"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50052"),
        ("0.0.0.0:7000", "127.0.0.1:7001"),
        ("[::]:7000", "127.0.0.1:7001"),
        ("127.0.0.1:65535", "127.0.0.1:65534"),
        ("127.0.0.1:0", "127.0.0.1:0"),
    ],
)
def test_the_admin_port_moves_with_the_grpc_port(grpc: str, admin: str) -> None:
    assert load(ServiceSettings, ["--grpc-address", grpc], {}).admin_address == admin
    both = ["--grpc-address", grpc, "--admin-address", "127.0.0.1:9999"]
    assert load(ServiceSettings, both, {}).admin_address == "127.0.0.1:9999"


@pytest.mark.parametrize("settings", [ServiceSettings, AdapterSettings])
def test_a_file_that_cannot_be_read_is_refused_by_name(
    settings: type[FlagSettings], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nobody\n")
    wide = tmp_path / "wide"
    wide.write_bytes(b"k\0e\0y\0")
    for file, says in (
        (tmp_path / "none", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (empty, "contains no API key"),
        (wide, "is not text"),
    ):
        loaded = load(settings, ["--api-key-file", str(file)], {})
        with pytest.raises(SystemExit) as refused:
            loaded.check_files()
        assert f"--api-key-file={file} (QWENVL_API_KEY_FILE): {says}" in str(refused.value)
    (tmp_path / "keys").write_text("key")
    load(settings, ["--api-key-file", str(tmp_path / "keys")], {}).check_files()


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "cuda:0,cuda:1,cuda:5"])
def test_names_of_devices_are_accepted(device: str) -> None:
    assert load(ServiceSettings, ["--device", device], {}).model_dump()["device"] == device


def test_an_empty_variable_is_absent() -> None:
    assert load(ServiceSettings, [], {"QWENVL_MAX_NUM_SEQS": ""}) == ServiceSettings()


@pytest.mark.parametrize("settings", [ServiceSettings, AdapterSettings])
def test_every_setting_is_described(settings: type[FlagSettings]) -> None:
    assert [name for name, info in settings.model_fields.items() if not info.description] == []
    assert ENV_PREFIX == "QWENVL_"


@pytest.mark.parametrize("settings", [["--admin-address", "none"], []])
def test_none_says_that_a_setting_is_absent(settings: list[str]) -> None:
    environ = {} if settings else {"QWENVL_ADMIN_ADDRESS": "none"}
    assert load(ServiceSettings, settings, environ).model_dump()["admin_address"] is None


def test_every_group_of_the_help_begins_at_a_setting() -> None:
    assert set(ServiceSettings.GROUPS.values()) <= set(ServiceSettings.model_fields)
    assert next(iter(ServiceSettings.model_fields)) in ServiceSettings.GROUPS.values()


def test_every_hub_can_be_chosen() -> None:
    assert set(get_args(ServiceSettings.model_fields["hub"].annotation)) == HUBS.keys()


ODD = (
    "9" * 5000,
    "1e400",
    "nan",
    "-1",
    " ",
    "a\nb",
    "\x1b[31m",
    "\udcff",
    "😀",
    "１２",
    "99999999999999999999999",
)


@pytest.mark.parametrize("settings", [ServiceSettings, AdapterSettings])
@pytest.mark.parametrize("value", ODD)
def test_any_value_is_taken_or_refused_in_one_printable_line(
    settings: type[FlagSettings], value: str
) -> None:
    for name in settings.model_fields:
        try:
            loaded = settings.load({}, {ENV_PREFIX + name.upper(): value})
        except SystemExit as refused:
            text = str(refused)
            assert text.isprintable()
            assert len(text) < 500
            assert f"({ENV_PREFIX}{name.upper()}): " in text
        else:
            value_of = getattr(loaded, name)
            assert not isinstance(value_of, int) or value_of < 2**31


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-num-seqs", "99999999999999999999"], "must be less than or equal to 2147483647"),
        (["--media-workers", "2000000000"], "must be less than or equal to 1024"),
        (["--cpu-threads", "2000000000"], "must be less than or equal to 1024"),
        (["--drain-timeout-s", "inf"], "must be less than or equal to 1000000"),
        (["--served-model-name", ""], "is empty"),
        (["--served-model-name", "a\tb"], "must be printable text of at most 256 characters"),
    ],
)
def test_numbers_and_names_have_limits(flags: list[str], says: str) -> None:
    with pytest.raises(SystemExit, match=says):
        load(ServiceSettings, flags, {})


def test_commas_separate_after_the_flag_too() -> None:
    for flags in (["a,b", "c"], ["a", "b", "c"], ["a, b,,c"]):
        loaded = load(ServiceSettings, ["--served-model-name", *flags], {})
        assert loaded.served_model_name == ("a", "b", "c")


TRACES = "--otlp-traces-endpoint"


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4317",
        "http://collector",
        "http://:4317",
        "grpc://collector:4317",
        "http://user:secret@collector:4317",
        "http://collector:4317/v1/traces",
        "http://collector:4317?x=y",
        "http://collector:99999",
        "http://[::1:4317",
    ],
)
def test_traces_go_to_a_host_and_a_port(endpoint: str) -> None:
    for program in (ServiceSettings, AdapterSettings):
        with pytest.raises(SystemExit, match="http://HOST:PORT") as refused:
            load(program, [TRACES, endpoint], {})
        assert "secret" not in str(refused.value)
    for good in ("http://collector:4317", "https://[::1]:4317/"):
        assert load(ServiceSettings, [TRACES, good], {}).otlp_traces_endpoint == good


def test_a_missing_package_for_traces_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for program in (ServiceSettings, AdapterSettings):
        load(program, [], {}).check_files()
        with pytest.raises(SystemExit) as refused:
            load(program, [TRACES, "http://collector:4317"], {}).check_files()
        (line,) = str(refused.value).splitlines()
        assert line.endswith("needs OpenTelemetry: pip install 'qwen-vl-serving[tracing]'")
