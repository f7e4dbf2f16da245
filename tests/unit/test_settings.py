"""Settings: defaults, then `config.pbtxt`, then the environment; and errors that say where a bad value came from."""

from __future__ import annotations

import dataclasses

import pytest

from tandem.settings import CoordinatorSettings, DraftSettings, SettingError, TargetSettings

BOTH = pytest.mark.parametrize("kind", [CoordinatorSettings, DraftSettings, TargetSettings])


@BOTH
def test_nothing_given_means_the_defaults(kind):
    assert kind.read({}, {}) == kind()


@BOTH
def test_every_setting_can_come_from_both_sources(kind):
    other = {bool: "true", int: "13", float: "0.5", str: "something"}
    for field in dataclasses.fields(kind):
        text = other[type(field.default)]
        wanted = type(field.default)(text)
        for parameters, environment in (
            ({field.name: text}, {}),
            ({}, {f"TANDEM_{field.name.upper()}": text}),
        ):
            settings = kind.read(parameters, environment)
            assert getattr(settings, field.name) == wanted
            assert dataclasses.replace(settings, **{field.name: field.default}) == kind()


def test_the_environment_wins():
    parameters, environment = {"kv_cache_mb": "512"}, {"TANDEM_KV_CACHE_MB": "64"}
    assert TargetSettings.read(parameters, environment).kv_cache_mb == 64
    assert TargetSettings.read(parameters, {}).kv_cache_mb == 512


def test_an_empty_value_is_none_at_all():
    assert TargetSettings.read({"kv_cache_mb": "512"}, {"TANDEM_KV_CACHE_MB": " "}).kv_cache_mb == 512


def test_variables_of_other_models_and_programs_are_passed_over():
    environment = {"TANDEM_MAX_RUNNING": "7", "TANDEM_NO_SUCH_THING": "x", "MAX_QUEUE_SIZE": "9"}
    assert TargetSettings.read({}, environment) == TargetSettings()
    assert CoordinatorSettings.read({}, environment) == CoordinatorSettings(max_running=7)


@pytest.mark.parametrize(
    ("kind", "name", "text", "wanted"),
    [
        (TargetSettings, "kv_cache_mb", "1GB", "int"),
        (CoordinatorSettings, "max_running", "3.5", "int"),
        (CoordinatorSettings, "max_queue_size", "many", "int"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_source(kind, name, text, wanted):
    with pytest.raises(SettingError) as caught:
        kind.read({name: text}, {})
    assert str(caught.value) == f"config.pbtxt: parameter {name!r} is {text!r}; it must be of type {wanted}"
    with pytest.raises(SettingError) as caught:
        kind.read({}, {f"TANDEM_{name.upper()}": text})
    assert str(caught.value).startswith(f"environment variable TANDEM_{name.upper()} is {text!r}")


@BOTH
def test_an_unknown_parameter_is_named_with_the_known_ones(kind):
    with pytest.raises(SettingError, match=r"unknown parameter 'max_runing'; known: .*\b(target|draft)_engine\b"):
        kind.read({"max_runing": "3"}, {})


@pytest.mark.parametrize(
    ("kind", "name", "least"),
    [
        (TargetSettings, "kv_cache_mb", 1),
        (TargetSettings, "threads", 0),
        (CoordinatorSettings, "max_running", 1),
        (CoordinatorSettings, "max_prompt_bytes", 1),
        (CoordinatorSettings, "default_max_tokens", 1),
        (CoordinatorSettings, "max_step_tokens", 1),
        (CoordinatorSettings, "mixed_step_tokens", 1),
        (CoordinatorSettings, "max_queue_size", 0),
        (CoordinatorSettings, "max_length", 0),
        (CoordinatorSettings, "default_timeout_ms", 0),
        (CoordinatorSettings, "max_responses_per_s", 0),
    ],
)
def test_ranges(kind, name, least):
    assert getattr(kind.read({name: str(least)}, {}), name) == least
    with pytest.raises(SettingError, match=f"setting {name!r} is {least - 1}; it must be"):
        kind.read({}, {f"TANDEM_{name.upper()}": str(least - 1)})
