"""Encrypted connections: what callers of the services, PostgreSQL and Kafka are told about them.

What cannot be meant is refused at start with one line: half a pair, a root certificate that nobody would
look at, a check that has nothing to check against.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic_settings import BaseSettings
from sqlalchemy.engine import URL, make_url

from eventsourcing.errors import ConfigurationError

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
"""libpq's words."""

_VERIFYING = ("verify-ca", "verify-full")


class TlsSettings(BaseSettings):
    """The part of the settings that says what is encrypted."""

    tls_cert_file: Path | None = None
    """The services' certificate with its chain, PEM; unset: they speak plain HTTP."""
    tls_key_file: Path | None = None
    """Its private key."""
    tls_key_password: str | None = None
    """What the key is encrypted with."""
    tls_client_ca_file: Path | None = None
    """The authority whose certificates callers must show; unset: they need none."""
    database_sslmode: SslMode | None = None
    """How the event database is reached, in libpq's words; unset: as its URL says."""
    database_ssl_root_cert: Path | None = None
    """The authority that the event database's certificate must come from."""

    def server_context(self) -> ssl.SSLContext | None:
        """What the services speak TLS with; None for plain HTTP. Raises ConfigurationError."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        password = self.tls_key_password
        try:
            context.load_cert_chain(self.tls_cert_file, self.tls_key_file, lambda: password or "")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"ESM_TLS_CERT_FILE and ESM_TLS_KEY_FILE are no certificate and its key: {_reason(error)}"
            ) from None
        if self.tls_client_ca_file is not None:
            try:
                context.load_verify_locations(self.tls_client_ca_file)
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"ESM_TLS_CLIENT_CA_FILE: {_reason(error)}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def refuse_half_a_pair(settings: TlsSettings) -> None:
    """Raise ValueError for TLS settings of the services that contradict each other."""
    if (settings.tls_cert_file is None) != (settings.tls_key_file is None):
        raise ValueError("ESM_TLS_CERT_FILE and ESM_TLS_KEY_FILE belong together")
    for name in ("tls_key_password", "tls_client_ca_file"):
        if getattr(settings, name) is not None and settings.tls_cert_file is None:
            raise ValueError(f"ESM_{name.upper()} has no effect without ESM_TLS_CERT_FILE")


def encrypted_url(database_url: str | None, settings: TlsSettings) -> str | None:
    """The URL of the event database with what the settings say of its encryption, in libpq's words.

    Raises ValueError for settings and a URL that contradict each other.
    """
    mode, root = settings.database_sslmode, settings.database_ssl_root_cert
    if database_url is None:
        if mode is not None or root is not None:
            raise ValueError(
                "ESM_DATABASE_SSLMODE needs a DATABASE_URL: the embedded server is not encrypted"
            )
        return None
    url = _in_libpq_words(make_url(database_url))
    said = {"sslmode": mode, "sslrootcert": None if root is None else str(root)}
    for name, value in said.items():
        if value is not None and url.query.get(name, value) != value:
            raise ValueError(f"DATABASE_URL says another {name} than the settings")
    url = url.update_query_dict({name: value for name, value in said.items() if value is not None})
    _refuse_blind_check(url.query)
    return url.render_as_string(hide_password=False)


def refuse_contradiction(options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for options of Kafka's client that would silently do nothing."""
    protocol = str(options.get("security.protocol", "plaintext")).upper()
    for name in options:
        for family in ("ssl", "sasl"):
            if name.startswith(f"{family}.") and family.upper() not in protocol.split("_"):
                wanted = "SSL or SASL_SSL" if family == "ssl" else "SASL_SSL"
                raise ConfigurationError(
                    f"Kafka option {name} has no effect with security.protocol={protocol}; set {wanted}"
                )
    if protocol.startswith("SASL") and not options.keys() & {"sasl.mechanisms", "sasl.mechanism"}:
        raise ConfigurationError(f"Kafka: security.protocol={protocol} needs sasl.mechanisms")


def _in_libpq_words(url: URL) -> URL:
    """`ssl=require`, as asyncpg's dialect has it, is `sslmode=require` to everybody else."""
    if "ssl" not in url.query:
        return url
    mode = url.query["ssl"]
    words = {"true": "require", "false": "disable"}
    plain = mode if isinstance(mode, str) else mode[-1]
    return url.difference_update_query(["ssl"]).update_query_dict({"sslmode": words.get(plain, plain)})


def _refuse_blind_check(query: Mapping[str, Any]) -> None:
    mode, root = query.get("sslmode"), query.get("sslrootcert")
    if mode in _VERIFYING and root is None:
        raise ValueError(f"sslmode={mode} needs ESM_DATABASE_SSL_ROOT_CERT, the authority to check against")
    if root is not None and mode not in _VERIFYING:
        raise ValueError("only ESM_DATABASE_SSLMODE=verify-ca or verify-full looks at a root certificate")
    if root is not None and not Path(str(root)).is_file():
        raise ValueError("ESM_DATABASE_SSL_ROOT_CERT is not a file")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM, or another password").replace("_", " ").lower()
    return getattr(error, "strerror", None) or "not readable"
