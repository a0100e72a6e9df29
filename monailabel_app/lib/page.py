"""The page at ``/``: what the server serves, what to open, and how far trainings are. It needs no internet."""

from __future__ import annotations

from html import escape

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp

from lib.versions import Versions

__all__ = ["serve_page"]

_SECONDS = 10  # after which browsers ask for it again
_STYLE = """body { font: 16px sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .4em .8em; border-bottom: 1px solid #ccc }
code { background: #eee; padding: .1em .3em }"""


def serve_page(app: FastAPI, served: MONAILabelApp) -> None:
    """From now on ``/`` is this page; MONAI Label's, a list of the requests, loads its scripts from the internet.

    Args:
        app: MONAI Label's server.
        served: this app.
    """
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != "/"]

    @app.get("/", include_in_schema=False)
    def page(request: Request) -> HTMLResponse:
        address = str(request.base_url).rstrip("/")
        parts = ["<h1>medsaga</h1>", _to_open(served, address)]
        if not settings.MONAI_LABEL_AUTH_ENABLE:  # else anybody could read it
            parts.append(_models(served))
        head = f'<meta charset="utf-8"><meta http-equiv="refresh" content="{_SECONDS}"><title>medsaga</title>'
        return HTMLResponse(f"<!DOCTYPE html><html><head>{head}<style>{_STYLE}</style></head>{''.join(parts)}</html>")


def _to_open(served: MONAILabelApp, address: str) -> str:
    lines = [f"<b>3D Slicer</b>: extension MONAILabel, server <code>{escape(address)}</code>, then <i>Next Sample</i>"]
    if served.studies.startswith("http"):
        lines.insert(0, f'<b>OHIF</b>: <a href="{escape(address)}/ohif/">{escape(address)}/ohif/</a>')
    else:
        lines.append("OHIF needs a DICOM store: <code>--studies http://HOST/dicom-web</code>")
    lines.append(f"Is it well? <code>python -m monailabel_app.check {escape(address)}</code>")
    lines.append(f'All requests: <a href="{escape(address)}/openapi.json">openapi.json</a>')
    return f"<h2>Open</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _models(served: MONAILabelApp) -> str:
    datastore = served.datastore()
    rows = []
    for name, task in sorted(served._trainers.items()):
        version, stats = Versions(task.model.models_dir).served(), task.stats()
        if version is not None:
            state = version.file + (f", Dice {version.score:.3f}" if version.score is not None else "")
        else:
            state = "model.pt" if task.model.trained else "not trained yet: points and boxes first"
        training = stats.get("message") or (f"epoch {stats['epoch']} of {stats['total_epochs']}" if stats else "")
        cells = (name, ", ".join(task.model.labels), state, len(task.labelled(datastore)), training)
        rows.append("".join(f"<td>{escape(str(cell))}</td>" for cell in cells))
    head = "".join(f"<th>{title}</th>" for title in ("Model", "Classes", "Served", "Labels", "Last training"))
    images = f"{len(datastore.list_images())} images, {len(datastore.get_labeled_images())} with a final label."
    table = f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    return f"<h2>Models</h2>{table}<p>{images}</p>"
