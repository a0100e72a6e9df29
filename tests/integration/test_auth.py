"""Tokens of an OpenID Connect realm, checked by MONAI Label as the app sets it right."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

import jwt
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from monailabel.endpoints.user import auth


def public(key: rsa.RSAPrivateKey, encoding: serialization.Encoding) -> bytes:
    return key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def realm(key, monkeypatch):
    """A realm that answers with its public key as Keycloak does; MONAI Label asks it."""
    from lib.auth import accept_signed_tokens

    class Realm(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            der = base64.b64encode(public(key, serialization.Encoding.DER)).decode()
            self.wfile.write(json.dumps({"public_key": der}).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Realm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(auth.settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth.settings, "MONAI_LABEL_AUTH_REALM_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(auth, "jwt", auth.jwt)
    accept_signed_tokens()
    yield
    server.shutdown()
    server.server_close()


def claims(seconds: float = 60) -> dict:
    roles = {"roles": ["monailabel-annotator"]}
    return {"preferred_username": "ann", "realm_access": roles, "exp": time.time() + seconds}


@pytest.mark.usefixtures("realm")
def test_a_token_of_the_realm_is_its_users(key):
    user = auth.from_token(jwt.encode(claims(), key, algorithm="RS256"))
    assert (user.username, user.roles) == ("ann", ["monailabel-annotator"])


@pytest.mark.usefixtures("realm")
def test_other_tokens_are_refused(key):
    other = rsa.generate_private_key(65537, 2048)
    for token in (
        jwt.encode(claims(), other, algorithm="RS256"),
        jwt.encode(claims(-60), key, algorithm="RS256"),
        jwt.encode(claims(), "", algorithm="none"),
        signed_with_public_key(key),
        "no token",
    ):
        with pytest.raises(jwt.InvalidTokenError):
            auth.from_token(token)


def signed_with_public_key(key: rsa.RSAPrivateKey) -> str:
    """HS256 with what everybody knows, in the form in which MONAI Label holds it."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    der = base64.b64encode(public(key, serialization.Encoding.DER)).decode()
    secret = f"-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----".encode()
    parts = f"{encode(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{encode(json.dumps(claims()).encode())}"
    signature = hmac.HMAC(secret, hashes.SHA256())
    signature.update(parts.encode())
    return f"{parts}.{encode(signature.finalize())}"
