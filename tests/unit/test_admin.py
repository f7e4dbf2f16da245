"""The key of the administration endpoints: where it comes from and what is done with it."""

from __future__ import annotations

import re

import pytest

from client.channel import ADMIN_HEADER, ADMIN_KEY_VARIABLE
from client.errors import Restricted, error_from_status
from launcher import admin
from launcher.__main__ import main
from launcher.admin import AdminKeyError, admin_key, restriction_arguments

KEY = "0123456789abcdef"


def test_the_key_is_that_of_the_environment():
    assert admin_key({"TANDEM_ADMIN_KEY": f" {KEY}\n"}) == KEY


@pytest.mark.parametrize("env", [{}, {"TANDEM_ADMIN_KEY": ""}])
def test_without_one_it_is_random(env):
    first, second = admin_key(env), admin_key(env)
    assert first != second
    assert len(first) >= 32
    assert admin_key({"TANDEM_ADMIN_KEY": first}) == first


@pytest.mark.parametrize("key", ["short", KEY + ":", KEY + "=x", KEY + " x", KEY + ",health", "ä" * 20, "x" * 257])
def test_keys_that_would_not_work_are_refused_without_being_told(key):
    with pytest.raises(AdminKeyError, match="TANDEM_ADMIN_KEY must be 16 to 256") as caught:
        admin_key({"TANDEM_ADMIN_KEY": key})
    assert key not in str(caught.value)


def test_serve_with_a_bad_key_ends_with_a_message(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TANDEM_ADMIN_KEY", "short")
    assert main(["serve", "--restrict-admin", "--model-repository", str(tmp_path)]) == 1
    assert "openssl rand" in capsys.readouterr().err


def test_arguments_for_both_protocols():
    http, grpc = restriction_arguments(KEY)
    rule = re.fullmatch(r"--http-restricted-api=(.*):tandem-admin-key=0123456789abcdef", http)
    assert rule
    assert set(rule[1].split(",")) == {"model-repository", "shared-memory", "trace", "logging"}
    assert grpc == http.replace("http-restricted-api", "grpc-restricted-protocol")


def test_client_and_launcher_speak_of_the_same_key():
    assert ADMIN_KEY_VARIABLE == admin.KEY_VARIABLE
    assert f"triton-grpc-protocol-{admin.HEADER}" == ADMIN_HEADER


def test_refusal_says_what_to_set():
    refusal = "This protocol is restricted, expecting header 'triton-grpc-protocol-tandem-admin-key'"
    error = error_from_status("UNAVAILABLE", refusal)
    assert type(error) is Restricted
    assert "TANDEM_ADMIN_KEY" in error.message
