"""Secrets are refused where they would be kept for ever (G11)."""

from __future__ import annotations

from typing import Any

import pytest

from eventsourcing.secrets import redact_url, refuse_secrets


@pytest.mark.parametrize(
    "config",
    [
        {"password": "x"},
        {"Password": "x"},
        {"db_password": "x"},
        {"dbPassword": "x"},
        {"passwd": "x"},
        {"passphrase": "x"},
        {"pass": "x"},
        {"pwd": "x"},
        {"secret": "x"},
        {"client_secret": "x"},
        {"token": "x"},
        {"access_token": "x"},
        {"api_key": "x"},
        {"apikey": "x"},
        {"API-KEY": "x"},
        {"private_key": "x"},
        {"accessKeyId": "x"},
        {"credentials": {}},
        {"nested": {"deeper": [{"password": None}]}},
        {"url": "postgresql://user:pw@host/db"},
        {"urls": ["mysql://user:pw@host"]},
        {"note": "see postgresql+asyncpg://user:pw@host/db for more"},
    ],
)
def test_a_key_or_a_url_that_holds_a_secret_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="for ever") as caught:
        refuse_secrets(config)
    assert "pw@" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"host": "db", "port": 5432, "database": "legacy", "user": "reader"},
        {"url": "postgresql://user@host/db"},
        {"url": "sqlite:////data/legacy.db"},
        {"passenger": "Ada", "passive": True},
        {"key": "id", "primary_key": "id", "keyspace": "x"},
        {"time": "12:30@noon"},
    ],
)
def test_a_plain_config_is_taken_as_it_is(config: dict[str, Any]) -> None:
    assert refuse_secrets(config) is config


def test_the_path_of_the_secret_is_named() -> None:
    with pytest.raises(ValueError, match=r"^tls\.private_key looks like"):
        refuse_secrets({"host": "db", "tls": {"private_key": "x"}})


def test_the_passwords_of_urls_are_replaced_in_a_text() -> None:
    text = (
        "cannot reach postgresql://user:p%40ss@host:5432/db nor kafka://:pw@broker, but http://host:80/a:b@c"
    )
    assert redact_url(text) == (
        "cannot reach postgresql://user:***@host:5432/db nor kafka://:***@broker, but http://host:80/a:b@c"
    )
