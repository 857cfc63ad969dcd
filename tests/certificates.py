"""An authority of the test's own, and certificates of it for loopback, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.servers import unavailable


@dataclass(frozen=True)
class Authority:
    """Signs certificates in its directory."""

    directory: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.pem"

    def sign(self, name: str, *, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """A certificate for an address of this machine, and its key (PKCS #8)."""
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        extension = f"subjectAltName=IP:{address}"
        made = ("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}")
        signed = ("-CA", str(self.certificate), "-CAkey", str(self.certificate.with_suffix(".key")))
        _openssl("req", "-x509", *_KEY, *made, *signed, "-addext", extension)
        return certificate, key


_KEY = ("-newkey", "rsa:2048", "-nodes")


def authority(directory: Path, name: str = "ca") -> Authority:
    """A new authority; skips the test without openssl."""
    if shutil.which("openssl") is None:
        unavailable("TLS", "openssl is not installed")
    made = Authority(directory, name)
    key = made.certificate.with_suffix(".key")
    files = ("-keyout", str(key), "-out", str(made.certificate))
    _openssl("req", "-x509", *_KEY, *files, "-days", "2", "-subj", f"/CN={name}")
    return made


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
