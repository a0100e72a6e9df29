"""An OpenID Connect realm on loopback, as Keycloak answers, and a server that asks it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medsaga.data import write_decathlon_phantoms

from .. import forks
from .bundles import ROOT
from .dicom.services import _process
from .server import Server, small_bundle, wait_for

__all__ = ["ROLES", "LoggedInServer", "Realm", "realm", "serve_with_logins", "table"]

ROLES = ("user", "annotator", "reviewer", "admin")
PASSWORD = "right"


@dataclass
class Realm:
    """A running realm.

    Attributes:
        url: to be given to MONAI Label.
        key: that signs its tokens.
    """

    url: str
    key: rsa.RSAPrivateKey

    def token(self, *roles: str, seconds: float = 86400, key: Any = None, algorithm: str = "RS256", **claims) -> str:
        """A token of somebody with these of ``ROLES``, valid for a day and signed by the realm unless told."""
        content = json.dumps(self._claims(roles, seconds, claims)).encode()  # PyJWT's own form is particular
        return jwt.PyJWS().encode(content, key if key is not None else self.key, algorithm=algorithm)

    def forged(self) -> dict[str, str]:
        """Tokens of all roles that the realm has not made, or that have had their time."""
        return {
            "expired": self.token(*ROLES, seconds=-60),
            "alg none": self.token(*ROLES, key="", algorithm="none"),
            "HS256 by the public key": self._signed_with_public_key(),
            "another key": self.token(*ROLES, key=rsa.generate_private_key(65537, 2048)),
            "cut": self.token(*ROLES)[:-40],
            "no token": "admin",
        }

    def public_key(self) -> str:
        """As Keycloak gives it: base64 of its DER."""
        return base64.b64encode(
            self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).decode()

    @staticmethod
    def _claims(roles: Sequence[str], seconds: float, claims: dict[str, Any]) -> dict[str, Any]:
        access = {"roles": [f"monailabel-{role}" for role in roles]}
        return {"preferred_username": "ann", "realm_access": access, "exp": time.time() + seconds, **claims}

    def _signed_with_public_key(self) -> str:
        """HS256 with what everybody knows, in the form in which MONAI Label holds it; PyJWT refuses to make it."""

        def encode(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        secret = f"-----BEGIN PUBLIC KEY-----\n{self.public_key()}\n-----END PUBLIC KEY-----".encode()
        content = [{"alg": "HS256", "typ": "JWT"}, self._claims(ROLES, 86400, {})]
        parts = ".".join(encode(json.dumps(part).encode()) for part in content)
        return f"{parts}.{encode(hmac.digest(secret, parts.encode(), hashlib.sha256))}"


@contextmanager
def realm() -> Iterator[Realm]:
    """A realm whose users are called as their only role, all with the password ``right``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            about = {"token_endpoint": f"{made.url}/token"}
            self.answer(200, about if "openid-configuration" in self.path else {"public_key": made.public_key()})

        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            (name,), (password,) = form.get("username", [""]), form.get("password", [""])
            if name in ROLES and password == PASSWORD:
                self.answer(200, {"access_token": made.token(name), "token_type": "Bearer"})
            else:
                self.answer(401, {"error": "invalid_grant", "error_description": "Invalid user credentials"})

        def answer(self, status: int, content: dict[str, str]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Realm(f"http://127.0.0.1:{server.server_port}", rsa.generate_private_key(65537, 2048))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class LoggedInServer(Server):
    """A server whose requests are those of somebody with a token."""

    token: str = ""

    def request(self, method: str, path: str, token: str | None = None, **options) -> requests.Response:
        """A request with a token, its own unless given; an empty one is not sent."""
        token = self.token if token is None else token
        return super().request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {}, **options)


@contextmanager
def serve_with_logins(
    folder: Path,
    realm: Realm,
    bundle: Path | None = None,
    environment: dict[str, str] | None = None,
    words: Sequence[str] = (),
) -> Iterator[LoggedInServer]:
    """Start a server that asks a realm, and stop it with all its processes; yields it for somebody with all roles.

    Args:
        folder: for everything that is written.
        realm: that its tokens are of.
        bundle: to serve; a trained small one unless given.
        environment: further environment variables.
        words: further words of the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle = bundle or small_bundle(folder)
    phantoms = write_decathlon_phantoms(folder / "phantoms", cases=4, shape=(24, 32, 12))
    studies = shutil.copytree(phantoms / "imagesTr", folder / "studies", dirs_exist_ok=True)
    for name in ("app", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    for part in ("main.py", "lib"):
        if not (folder / "app" / part).exists():
            (folder / "app" / part).symlink_to(ROOT / "monailabel_app" / part)
    port, log = forks.free_port(), folder / "server.log"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(folder / "app")]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--conf", "models", str(bundle), *words]
    settings = {
        "MONAI_LABEL_AUTH_ENABLE": "true",
        "MONAI_LABEL_AUTH_REALM_URI": realm.url,
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "TMPDIR": str(folder / "tmp"),
        **(environment or {}),
    }
    url = f"http://127.0.0.1:{port}"
    with _process(command, log, settings, cwd=folder) as process:
        wait_for(f"{url}/auth/", process, log, seconds=180)
        labels = phantoms / "labelsTr"
        yield LoggedInServer(url, studies, labels, bundle, log, process, settings, token=realm.token(*ROLES))


def table() -> dict[tuple[str, str], str]:
    """Who may use which endpoint, by method and path, as the administrator reads it."""
    text = (ROOT / "docs" / "administrator.md").read_text().split("| Endpoint | Who |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    return {tuple(endpoint.strip(" `").split()): who.strip() for endpoint, who in rows}
