"""Every endpoint of the server: who may use it, and what is checked. Endpoints not listed here are closed.

The same table stands in ``docs/administrator.md``; a test compares both with the routes of the running server.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fastapi import HTTPException
from monailabel.config import settings

__all__ = ["ROUTES", "Route"]

_FIELDS, _FILE = "fields", "file"
_PROXIED = re.compile(r"(studies|series|instances)(/(?!\.+(/|$))[\w.,-]+)*/?", re.ASCII)
_STORED = re.compile(r"studies(/[0-9.]+)?/?", re.ASCII)


def _dicomweb_path(path: str, allowed: re.Pattern[str]) -> None:
    """Refuse what is no DICOMweb resource: the store may have other addresses, which only its administrator may use."""
    if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise HTTPException(404, "This server has no DICOM store.")
    if not allowed.fullmatch(path):
        raise HTTPException(404, f"{path[:200]!a} is not a DICOMweb path that this server passes on.")


def _needs_nvidia_smi(path: str) -> None:
    if not shutil.which("nvidia-smi"):
        raise HTTPException(404, "nvidia-smi is not installed on this server.")


@dataclass(frozen=True)
class Route:
    """One endpoint.

    Args:
        who: ``anybody``, ``user``, ``annotator`` or ``admin``, the roles of a login; ``nobody`` for a closed one.
        checked: what is checked, or why the endpoint is closed, in words.
        takes: how much a request may send: ``fields`` (1 MB) or ``file`` (``MEDSAGA_MAX_UPLOAD_GB``).
        login: whether it is closed where the server has no logins.
        check: takes the path after the endpoint's own, and raises HTTPException for one that is refused.
    """

    who: str
    checked: str = ""
    takes: str = _FIELDS
    login: bool = False
    check: Callable[[str], None] | None = None


_LISTED = "closed list of fields"
_IMAGE = "file and its name, fields are JSON"
_NO_SLIDES = "closed: no model works on whole-slide images"
_NO_CLIENT = "closed: no client of this app uses it"
_READ = partial(_dicomweb_path, allowed=_PROXIED)
_SEND = partial(_dicomweb_path, allowed=_STORED)

ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/"): Route("anybody", "page of what is served; of models only without logins"),
    ("GET", "/openapi.json"): Route("anybody", "list of the requests"),
    ("HEAD", "/openapi.json"): Route("anybody", "list of the requests"),
    ("GET", "/favicon.ico"): Route("anybody"),
    ("GET", "/docs"): Route("nobody", _NO_CLIENT),
    ("HEAD", "/docs"): Route("nobody", _NO_CLIENT),
    ("*", "/static"): Route("nobody", _NO_CLIENT),
    ("POST", "/reload"): Route("nobody", "closed: a restart loads the app anew"),
    ("GET", "/auth/"): Route("anybody", "whether there are logins, and where"),
    ("POST", "/auth/token"): Route("anybody", "name and password, by the realm"),
    ("GET", "/auth/token/valid"): Route("user"),
    ("GET", "/info/"): Route("user"),
    ("GET", "/logs/"): Route("admin", "only where there are logins", login=True),
    ("GET", "/logs/gpu"): Route("admin", "only where there are logins", login=True, check=_needs_nvidia_smi),
    ("GET", "/ohif/{path:path}"): Route("user", "files of OHIF only"),
    # segmentation
    ("POST", "/infer/{model}"): Route("user", f"{_LISTED}; image or session known, or a file that can be read", _FILE),
    ("POST", "/infer/wsi/{model}"): Route("nobody", _NO_SLIDES),
    ("POST", "/infer/wsi_v2/{model}"): Route("nobody", _NO_SLIDES),
    ("GET", "/batch/infer"): Route("user"),
    ("POST", "/batch/infer/{model}"): Route("admin", _LISTED),
    ("DELETE", "/batch/infer"): Route("admin"),
    ("PUT", "/session/"): Route("user", "file, archive or files of one image that can be read", _FILE),
    ("GET", "/session/{session_id}"): Route("user", "id is a UUID"),
    ("DELETE", "/session/{session_id}"): Route("user", "id is a UUID"),
    # training
    ("GET", "/train/"): Route("user"),
    ("POST", "/train/"): Route("admin", f"{_LISTED} for each model"),
    ("POST", "/train/{model}"): Route("admin", _LISTED),
    ("DELETE", "/train/"): Route("admin"),
    ("GET", "/model/{model}"): Route("admin"),
    ("GET", "/model/info/{model}"): Route("admin"),
    ("PUT", "/model/{model}"): Route("admin", "weights fit; scored; served only if not worse", _FILE),
    ("DELETE", "/model/{model}"): Route("nobody", "closed: a served model is replaced, not removed"),
    # choice and scores
    ("POST", "/activelearning/{strategy}"): Route("user", _LISTED),
    ("GET", "/scoring/"): Route("user"),
    ("POST", "/scoring/"): Route("annotator", f"{_LISTED} for each method"),
    ("POST", "/scoring/{method}"): Route("annotator", _LISTED),
    ("DELETE", "/scoring/"): Route("annotator"),
    # images and labels
    ("GET", "/datastore/"): Route("user"),
    ("PUT", "/datastore/"): Route("annotator", _IMAGE, _FILE),
    ("PUT", "/datastore/image"): Route("annotator", _IMAGE, _FILE),
    ("HEAD", "/datastore/image"): Route("user", "checksum"),
    ("GET", "/datastore/image"): Route("user"),
    ("DELETE", "/datastore/"): Route("admin"),
    ("DELETE", "/datastore/image"): Route("admin"),
    ("GET", "/datastore/image/info"): Route("user"),
    ("PUT", "/datastore/image/info"): Route("annotator", "JSON that can be read back"),
    ("PUT", "/datastore/label"): Route("annotator", "label fits image and classes; fields are JSON", _FILE),
    ("HEAD", "/datastore/label"): Route("user"),
    ("GET", "/datastore/label"): Route("user"),
    ("DELETE", "/datastore/label"): Route("admin"),
    ("GET", "/datastore/label/info"): Route("user"),
    ("PUT", "/datastore/label/info"): Route("annotator", "JSON that can be read back"),
    ("PUT", "/datastore/updatelabelinfo"): Route("annotator", "JSON that can be read back"),
    ("GET", "/datastore/dataset"): Route("annotator"),
    # the DICOM store, for OHIF
    ("GET", "/proxy/dicom/qido/{path:path}"): Route("user", "paths of DICOMweb", check=_READ),
    ("GET", "/proxy/dicom/wado/{path:path}"): Route("user", "paths of DICOMweb", check=_READ),
    ("POST", "/proxy/dicom/wado/{path:path}"): Route("annotator", "studies, to add to", _FILE, check=_SEND),
    ("POST", "/proxy/dicom/qido/{path:path}"): Route("nobody", _NO_CLIENT),
    ("GET", "/proxy/dicom/stow/{path:path}"): Route("nobody", _NO_CLIENT),
    ("POST", "/proxy/dicom/stow/{path:path}"): Route("nobody", _NO_CLIENT),
    ("GET", "/proxy/dicom/{path:path}"): Route("nobody", _NO_CLIENT),
    ("POST", "/proxy/dicom/{path:path}"): Route("nobody", _NO_CLIENT),
}
