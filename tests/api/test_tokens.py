"""Access tokens: what an issuer signed for us opens, nothing else does; the issuer may rotate its keys."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

import api.tokens
from eventsourcing import Settings
from tests.api.callers import bearer, both, guarded
from tests.api.conftest import InlineLauncher, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

AUDIENCE = "esm-tests"


class Issuer:
    """An OpenID Connect issuer on loopback."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"first": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.asked = 0
        self.away = False
        issuer = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                body = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                content = json.dumps(body if "openid" in self.path else {"keys": issuer.published()}).encode()
                self.send_response(503 if issuer.away else 200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:  # a quiet server
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def published(self) -> list[dict[str, Any]]:
        made = []
        for kid, key in self.keys.items():
            algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
            made.append(json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
        return made

    def token(self, *, kid: str = "first", key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        given = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "importer",
            "exp": time.time() + 60,
            "scope": "openid events:read",
            **claims,
        }
        kept = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(kept, key or self.keys[kid], algorithm=algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest_asyncio.fixture(loop_scope="session")
async def client(
    settings: Settings, launcher: InlineLauncher, issuer: Issuer
) -> AsyncIterator[httpx2.AsyncClient]:
    changes = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE, "rate_limit": 0}
    async with both(guarded(settings, **changes), launcher) as clients:
        yield clients["event-service"]


async def test_a_token_of_the_issuer_opens_what_its_scopes_say(
    client: httpx2.AsyncClient, issuer: Issuer
) -> None:
    token = issuer.token()
    assert (await client.get("/events", headers=bearer(token))).status_code == 200
    assert_problem(await client.get("/audit", headers=bearer(token)), 403, "forbidden")
    listed = issuer.token(scope=None, scp=["admin"])
    assert (await client.get("/audit", headers=bearer(listed))).status_code == 200


async def test_nothing_else_opens(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = issuer.keys["first"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header, _, rest = issuer.token().partition(".")
    claims, _, signature = rest.partition(".")
    unsigned = jwt.encode({"sub": "x"}, "", algorithm="none", headers={"kid": "first"}).partition(".")[0]
    forged_header = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"first"}')
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signed = forged_header + b"." + claims.encode()
    confused = signed + b"." + jwt.utils.base64url_encode(mac.sign(signed, public))
    refused = {
        "another audience": issuer.token(aud="others"),
        "no audience": issuer.token(aud=None),
        "another issuer": issuer.token(iss="https://id.example.com"),
        "expired": issuer.token(exp=time.time() - 60),
        "no expiry": issuer.token(exp=None),
        "nobody": issuer.token(sub=None),
        "a stranger's key": issuer.token(key=stranger),
        "an unknown key id": issuer.token(kid="first", key=stranger).replace("a", "b", 1),
        "not yet": issuer.token(nbf=time.time() + 600),
        "unsigned": f"{unsigned}.{claims}.",
        "signed with what is public": confused.decode(),
        "changed": f"{header}.{claims[:-2]}AA.{signature}",
        "long": "a." + "b" * 9000 + ".c",
    }
    for why, token in refused.items():
        answer = await client.get("/events", headers=bearer(token))
        assert answer.status_code == 401, why
        assert_problem(answer, 401, "unauthenticated")


async def test_the_issuer_may_rotate_its_keys_and_may_be_away(
    client: httpx2.AsyncClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.tokens, "AGAIN_S", 0.0)
    old = issuer.token()
    assert (await client.get("/events", headers=bearer(old))).status_code == 200
    issuer.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    new = issuer.token(kid="second", algorithm="ES256")
    assert (await client.get("/events", headers=bearer(new))).status_code == 200

    issuer.away = True
    try:
        monkeypatch.setattr(api.tokens, "FRESH_S", 0.0)
        assert (await client.get("/events", headers=bearer(new))).status_code == 200
        monkeypatch.setattr(api.tokens, "STALE_S", 0.0)
        assert_problem(await client.get("/events", headers=bearer(new)), 503, "unavailable")
    finally:
        issuer.away = False

    del issuer.keys["second"]
    assert_problem(await client.get("/events", headers=bearer(new)), 401)
    assert (await client.get("/events", headers=bearer(old))).status_code == 200


async def test_unknown_key_ids_do_not_make_us_ask_the_issuer_again_and_again(
    client: httpx2.AsyncClient, issuer: Issuer
) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert (await client.get("/events", headers=bearer(issuer.token()))).status_code == 200
    before = issuer.asked
    for number in range(20):
        token = issuer.token(kid=f"unknown-{number}", key=stranger)
        assert_problem(await client.get("/events", headers=bearer(token)), 401)
    assert issuer.asked == before
