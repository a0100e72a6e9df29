"""OHIF as MONAI Label ships it, with the button that it lacks: to submit the label that is drawn."""

from __future__ import annotations

from pathlib import Path

from fastapi.responses import FileResponse, Response
from monailabel.endpoints import ohif

__all__ = ["add_submit_button"]

_SCRIPT = Path(__file__).with_name("ohif_submit.js")
_CONFIG = "app-config.js"  # the one script of OHIF's page that is meant to be a site's own


def add_submit_button() -> None:
    """From now on ``/ohif`` is served with the button; files of MONAI Label are not changed."""
    original = ohif.get_ohif
    if getattr(original, "has_submit_button", False):
        return

    def get_ohif(path: str) -> Response:
        answer = original(path)
        if path != _CONFIG or not isinstance(answer, FileResponse):
            return answer
        # not to be kept by browsers: an update of this app must reach them
        return Response(
            Path(answer.path).read_text() + "\n" + _SCRIPT.read_text(),
            media_type="text/javascript",
            headers={"Cache-Control": "no-cache"},
        )

    get_ohif.has_submit_button = True
    ohif.get_ohif = get_ohif
