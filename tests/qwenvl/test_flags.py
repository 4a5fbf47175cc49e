"""Settings from flags and environment, the same way for both programs."""

from __future__ import annotations

import argparse
from typing import get_args

import pytest

from inference_service.__main__ import main
from inference_service.hub.clients import HUBS
from inference_service.settings import ServiceSettings
from qwenvl.flags import ENV_PREFIX, FlagSettings
from rest_adapter.settings import AdapterSettings


def load(settings: type[FlagSettings], argv: list[str], environ: dict[str, str]) -> FlagSettings:
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
        ({"QWENVL_DEVICE": "toaster"}, "--device: must be auto, cpu"),
        ({"QWENVL_DEVICE": "cuda:0,cpu"}, "--device: must be .* several GPUs such as"),
        ({"QWENVL_DEVICE": "cpu,cpu"}, "--device"),
        ({"QWENVL_DEVICE": "cuda:0,"}, "--device"),
        ({"QWENVL_DEVICE": "cuda:0,cuda:1,cuda:0"}, "--device: names the same GPU twice"),
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


def test_every_hub_can_be_chosen() -> None:
    assert set(get_args(ServiceSettings.model_fields["hub"].annotation)) == HUBS.keys()
