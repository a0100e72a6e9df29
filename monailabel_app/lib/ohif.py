"""OHIF as MONAI Label ships it, at the path that a reverse proxy gives it, with what its panel lacks."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from fastapi.responses import FileResponse, Response
from monailabel.endpoints import ohif
from monailabel.utils.others.generic import get_mime_type

__all__ = ["serve_ohif"]

_FOLDER = Path(ohif.__file__).parent / "static" / "ohif"
_PARTS = ("server", "drawing", "prompts", "slices", "submit", "panel")
_ADDED = [Path(__file__).with_name(f"ohif_{part}.js") for part in _PARTS]
_CONFIG = "app-config.js"  # the one script of OHIF's page that is meant to be a site's own
_PAGE = "index.html"
_PLAIN = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".json": "application/json"}


def serve_ohif(root_path: str = "") -> None:
    """From now on ``/ohif`` is served with what is added; files of MONAI Label are not changed.

    Args:
        root_path: path that a reverse proxy has before the server's own paths, such as ``/label``. OHIF's files contain
            their own addresses, which start at the root.
    """

    def get_ohif(path: str) -> Response:
        # OHIF has addresses of its own for studies and modes, which all open its only page
        name = path if _PLAIN.fullmatch(path) and ".." not in path and (_FOLDER / path).is_file() else _PAGE
        file = _FOLDER / name
        if name != _CONFIG and (not root_path or file.suffix not in _TYPES):
            return FileResponse(file, media_type=get_mime_type(str(file)))
        # not to be kept by browsers: an update of this app must reach them
        return Response(_text(name, root_path), media_type=_TYPES[file.suffix], headers={"Cache-Control": "no-cache"})

    ohif.get_ohif = get_ohif


@functools.lru_cache(maxsize=256)
def _text(name: str, root_path: str) -> str:
    text = (_FOLDER / name).read_text()
    if name == _CONFIG:
        parts = "\n".join(part.read_text() for part in _ADDED)
        text += f"\n(() => {{\n{parts}}})();\n"
    return re.sub(r"(?<=[\"'=])/(ohif|proxy)/", rf"{root_path}/\1/", text) if root_path else text
