"""Access tokens: what an issuer signed for us opens, nothing else does; the issuer may rotate its keys."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
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
from eventsourcing import Settings, UnavailableError
from tests.api.callers import bearer, both, guarded
from tests.api.conftest import InlineLauncher, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

AUDIENCE = "esm-tests"


class Issuer:
    """An OpenID Connect issuer on loopback."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"first": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.asked = 0
        self.away = self.drips = self.redirects = False
        self.answers: bytes | None = None
        issuer = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                body = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                content = json.dumps(body if "openid" in self.path else {"keys": issuer.published()}).encode()
                self.send_response(503 if issuer.away else 302 if issuer.redirects else 200)
                if issuer.redirects:
                    self.send_header("Location", f"{issuer.url}/elsewhere")
                self.end_headers()
                with suppress(OSError):
                    while issuer.drips:
                        self.wfile.write(b" ")
                        time.sleep(0.02)
                    self.wfile.write(issuer.answers or content)

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


def _forged(header: bytes | dict[str, Any], claims: bytes = b"{}") -> str:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    parts = (encoded, claims, b"x" * 256)
    return b".".join(jwt.utils.base64url_encode(part) for part in parts).decode()


async def test_no_header_of_a_token_leads_anywhere(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    jwk = json.loads(RSAAlgorithm.to_jwk(own.public_key()))
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 60, "scope": "admin"}

    def signed(key: Any = own, **header: Any) -> str:
        return jwt.encode(claims, key, algorithm="RS256", headers={"kid": "first", **header})

    asked = issuer.asked
    refused = {
        "jwk": signed(jwk=jwk),
        "jku": signed(jku=f"{issuer.url}/keys"),
        "x5u": signed(x5u=f"{issuer.url}/keys"),
        "x5c": signed(x5c=["MIIB"]),
        "crit": signed(issuer.keys["first"], crit=["unknown"], unknown=1),
        "b64": signed(issuer.keys["first"], b64=False, crit=["b64"]),
        "kid of a path": signed(kid="../../../../dev/null"),
        "kid of SQL": signed(kid="' OR 1=1 --"),
        "kid that is no text": _forged({"alg": "RS256", "kid": ["first"]}),
        "kid that is an object": _forged({"alg": "RS256", "kid": {"a": 1}}),
        "no alg": _forged({"kid": "first"}),
        "alg that is no text": _forged({"alg": ["RS256"], "kid": "first"}),
        "alg in another case": _forged({"alg": "rs256", "kid": "first"}),
        "deep": _forged(b'{"alg":"RS256","kid":"first","x":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        "no object": _forged(b'"RS256"'),
        "bad UTF-8": _forged(b'{"alg":"\xff"}'),
    }
    for why, token in refused.items():
        assert_problem(await client.get("/audit", headers=bearer(token)), 401, "unauthenticated")
        assert issuer.asked - asked <= 2, why


SHAPES = [
    ({"scope": {"admin": True}}, 403),
    ({"scope": 7}, 403),
    ({"scope": True}, 403),
    ({"scope": [["admin"], {"admin": 1}, 5]}, 403),
    ({"scope": "Admin admins admin,x"}, 403),
    ({"scope": None, "scp": "admin"}, 200),
    ({"scope": ["admin"]}, 200),
    ({"scope": "\tadmin\n openid"}, 200),
    ({"sub": 5}, 401),
    ({"sub": ""}, 401),
    ({"sub": "a\x00b"}, 401),
    ({"sub": "a\x1fPOST\x1f/events"}, 401),
    ({"sub": "a\r\nb"}, 401),
    ({"sub": "a\u202eb"}, 401),
    ({"sub": "x" * 256}, 401),
    ({"exp": "soon"}, 401),
    ({"exp": float("inf")}, 401),
    ({"exp": []}, 401),
    ({"nbf": {}}, 401),
    ({"aud": [AUDIENCE, "others"], "scope": "admin"}, 200),
    ({"aud": {AUDIENCE: 1}}, 401),
    ({"aud": AUDIENCE.upper()}, 401),
]


@pytest.mark.parametrize(("claims", "status"), SHAPES)
async def test_claims_of_odd_shapes_grant_nothing(
    client: httpx2.AsyncClient, issuer: Issuer, claims: dict[str, Any], status: int
) -> None:
    def encoded(value: Any) -> bytes:
        return jwt.utils.base64url_encode(json.dumps(value).encode())

    given = {"iss": issuer.url, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 60, **claims}
    signed = encoded({"alg": "RS256", "kid": "first"}) + b"." + encoded(given)
    signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(signed, issuer.keys["first"])
    token = (signed + b"." + jwt.utils.base64url_encode(signature)).decode()
    answer = await client.get("/audit", headers=bearer(token))
    assert answer.status_code == status, answer.text


async def test_clocks_may_differ_by_ten_seconds_and_no_more(
    client: httpx2.AsyncClient, issuer: Issuer
) -> None:
    for shift, status in ((-5, 200), (-30, 401)):
        token = issuer.token(exp=time.time() + shift)
        assert (await client.get("/events", headers=bearer(token))).status_code == status
    for shift, status in ((5, 200), (30, 401)):
        token = issuer.token(nbf=time.time() + shift, iat=time.time() + shift)
        assert (await client.get("/events", headers=bearer(token))).status_code == status


async def test_two_subjects_are_two_callers_however_long_they_are(issuer: Issuer) -> None:
    verifier = api.tokens.TokenVerifier(issuer.url, AUDIENCE, None)
    first, second = [await verifier.caller(issuer.token(sub="x" * 254 + end)) for end in "ab"]
    assert first is not None
    assert second is not None
    assert first.name != second.name


async def test_who_holds_a_known_key_does_not_wait_for_a_slow_issuer(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = api.tokens.TokenVerifier(issuer.url, AUDIENCE, None)
    assert await verifier.caller(issuer.token()) is not None
    monkeypatch.setattr(api.tokens, "FRESH_S", 0.0)
    monkeypatch.setattr(api.tokens, "AGAIN_S", 0.0)
    monkeypatch.setattr(api.tokens, "_FETCH_S", 0.5)
    issuer.drips = True
    try:
        fetched = asyncio.create_task(verifier.caller(issuer.token(kid="unknown", key=issuer.keys["first"])))
        await asyncio.sleep(0.05)
        assert await verifier.caller(issuer.token()) is not None
        assert not fetched.done(), "the issuer is still being asked"
        async with asyncio.timeout(10):  # it never ends by itself
            assert await fetched is None
    finally:
        issuer.drips = False


NO_LISTS = [b"[]", b"null", b"[" * 100_000, b"\xff", b"x" * 2_000_000, b'{"keys":5}', b'{"keys":[5]}']


@pytest.mark.parametrize("answer", NO_LISTS)
async def test_a_list_of_keys_that_is_none_is_as_good_as_none(issuer: Issuer, answer: bytes) -> None:
    verifier = api.tokens.TokenVerifier(issuer.url, AUDIENCE, f"{issuer.url}/keys")
    issuer.answers = answer
    try:
        with pytest.raises(UnavailableError):
            await verifier.caller(issuer.token())
        asked = issuer.asked
        for _ in range(20):
            with pytest.raises(UnavailableError):
                await verifier.caller(issuer.token())
        assert issuer.asked == asked, "it is not asked by every caller"
    finally:
        issuer.answers = None


async def test_a_redirect_is_not_followed_and_only_signing_keys_count(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.redirects = True
    try:
        with pytest.raises(UnavailableError):
            await api.tokens.TokenVerifier(issuer.url, AUDIENCE, f"{issuer.url}/keys").caller(issuer.token())
    finally:
        issuer.redirects = False
    shared = {
        "kty": "oct",
        "kid": "shared",
        "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I",
        "alg": "HS256",
    }
    for_secrecy = {**issuer.published()[0], "kid": "enc", "use": "enc"}
    listed = {"keys": [shared, for_secrecy]}
    monkeypatch.setattr(issuer, "answers", json.dumps(listed).encode())
    verifier = api.tokens.TokenVerifier(issuer.url, AUDIENCE, f"{issuer.url}/keys")
    assert await verifier.caller(issuer.token(kid="enc", key=issuer.keys["first"])) is None
    mac = jwt.encode({"sub": "x"}, b"secret-secret-secret-secret-secr", "HS256", headers={"kid": "shared"})
    assert await verifier.caller(mac) is None
