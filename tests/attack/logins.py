"""Requests of people with all kinds of tokens, and who of them must be refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..integration.realm import ROLES, Realm, table
from .payloads import KINDS, Raw, payload
from .wire import Answer, Shot

__all__ = ["Logins"]

_ODD = ("preferred_username", "name", "email", "realm_access", "roles", "exp", "nbf", "aud", "iss", "sub")


class Logins:
    """Adds a token to each request and judges the answer by the administrator's table.

    Args:
        realm: that the server asks.
        mark: name of the file that an expression would write.
        rng: chooses.

    Attributes:
        answers: by kind of token, how many of each status.
    """

    def __init__(self, realm: Realm, mark: str, rng: np.random.Generator) -> None:
        self.realm, self.mark, self.rng = realm, mark, rng
        self.answers: dict[str, Counter] = {}
        self._who = {
            f"{method} {path.replace(':path', '')}": who for (method, path), who in table().items() if method != "*"
        }
        bearer = {role: f"Bearer {realm.token(role)}" for role in ROLES} | {"all": f"Bearer {realm.token(*ROLES)}"}
        forged = {what: f"Bearer {token}" for what, token in realm.forged().items()}
        others = {"none": "", "no roles": f"Bearer {realm.token()}", "Basic": f"Basic {realm.token(*ROLES)}"}
        self._tokens = {**others, **forged, **bearer, **bearer}  # known ones as often as all others

    def sign(self, shot: Shot) -> None:
        """Give a request somebody's token, if it has not brought its own."""
        if any(name == "Authorization" for name, _ in shot.headers):
            shot.login = "none"
            return
        names = [*self._tokens, *ROLES, *ROLES, "all", "all", "in the query", "odd claims"]
        shot.login = names[self.rng.integers(len(names))]
        header = self._tokens.get(shot.login, "")
        if shot.login == "in the query":
            shot.target += f"{'&' if '?' in shot.target else '?'}token={self.realm.token(*ROLES)}"
        elif shot.login == "odd claims":
            header = f"Bearer {self._odd(shot)}"
        if header:
            shot.headers.append(("Authorization", header))

    def judge(self, shot: Shot, answer: Answer) -> list[str]:
        """What is wrong with an answer to somebody with this token."""
        self.answers.setdefault(shot.login, Counter())[answer.status] += 1
        who = self._who.get(shot.route, "nobody")
        if answer.status <= 0 or who == "anybody" or shot.login == "odd claims":
            return []
        if shot.login in ("all", who):
            # a closed endpoint is refused to all; a foreign page has a reason of its own to be refused
            wrong = answer.status in (401, 403) and shot.field not in ("Origin", "Host") and not self._besides(shot)
            return [f"{shot.route} [{shot.login}] -> {answer.status}, which {who} may use"] if wrong else []
        refused = {401, 403} | ({404} if who == "nobody" else set())
        # what aims at the path or at the headers may be no request to this endpoint any more
        elsewhere = shot.kind == "header" or shot.field in shot.inside
        if answer.status in refused or (elsewhere and 300 <= answer.status < 500):
            return []
        return [f"{shot.route} [{shot.login}] -> {answer.status}, which only {who} may use"]

    @staticmethod
    def _besides(shot: Shot) -> bool:
        """MONAI Label asks for another role too."""
        return shot.login != "all" and shot.route in ("PUT /model/{model}", "POST /proxy/dicom/wado/{path}")

    def _odd(self, shot: Shot) -> str:
        """A token of the realm with something else in one claim than it means to say."""
        claim = _ODD[self.rng.integers(len(_ODD))]
        kind = [kind for kind in KINDS if kind != "depth"][self.rng.integers(len(KINDS) - 1)]
        value: Any = Raw()
        while isinstance(value, Raw) or len(repr(value)) > 10_000:  # a token is JSON, and a header
            value = payload(kind, self.rng, self.mark)
        shot.claim = f"token {claim}", kind
        return self.realm.token(*ROLES, **{claim: value})
