"""MONAI Label's check of login tokens, which in 0.8.5 names no algorithm, so that PyJWT 2 refuses every token."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jwt
from monailabel.endpoints.user import auth

__all__ = ["accept_signed_tokens"]

# a realm's public key is an RSA one; were others named, a token could be "signed" with the public key itself (HS256)
_ALGORITHMS = ["RS256", "RS384", "RS512"]


def accept_signed_tokens() -> None:
    """From now on tokens signed by the realm are accepted; without this, all are refused."""
    auth.jwt = SimpleNamespace(decode=partial(jwt.decode, algorithms=_ALGORITHMS))
