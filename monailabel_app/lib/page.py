"""The page at ``/``: what to open, what the server serves, and how far trainings are. It needs no internet."""

from __future__ import annotations

import re
from html import escape

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp

from lib.model_versions import PUBLISHED, Versions
from lib.opening import Line, print_when_it_answers, to_open
from lib.start import started
from lib.trainers import RetrainTask

__all__ = ["serve_page"]

_SECONDS = 10  # after which browsers ask for it again
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: light-dark(#0b6e8f, #5cc3e6) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2.5rem auto; padding: 0 1.25rem }
h1 { margin: 0; font-size: 1.9rem } h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem }
p { margin: .3rem 0 } .quiet { opacity: .75 }
ul { list-style: none; margin: 0; padding: 0 }
li { display: grid; grid-template-columns: 7rem 1fr; margin-bottom: .6rem; padding: .7rem 1rem }
li { border: 1px solid var(--line); border-radius: .5rem }
li:has(a) { border-color: var(--accent); border-width: 2px }
a { color: var(--accent); font-weight: 600 }
code { background: var(--soft); border: 1px solid var(--line); border-radius: .3rem; padding: .05rem .35rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .5rem .8rem .5rem 0; border-bottom: 1px solid var(--line) }
progress { width: 8rem; accent-color: var(--accent) }
"""


def serve_page(app: FastAPI, served: MONAILabelApp) -> None:
    """From now on ``/`` is this page, and what to open is printed when the server answers.

    MONAI Label's own page, a list of the requests, loads its scripts from the internet.

    Args:
        app: MONAI Label's server.
        served: this app. Its ``conf`` may have sentences for people, see :mod:`lib.opening`.
    """
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != "/"]

    @app.get("/", include_in_schema=False)
    def page(request: Request) -> HTMLResponse:
        address = str(request.base_url).rstrip("/")
        lines = "".join(f"<li>{_as_html(line)}</li>" for line in to_open(address, served.studies, served.conf))
        parts = ["<h1>medsaga</h1>", "<p>Segment, correct, train on what you have corrected. Not for diagnosis.</p>"]
        parts.append(f"<h2>Open</h2><ul>{lines}</ul>")
        if not settings.MONAI_LABEL_AUTH_ENABLE:  # else anybody could read it
            parts += [_images(served), _models(served)]
        parts.append(f'<p class=quiet>All requests: <a href="{escape(address)}/openapi.json">openapi.json</a></p>')
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        head += f'<meta http-equiv="refresh" content="{_SECONDS}"><title>medsaga</title><style>{_STYLE}</style>'
        return HTMLResponse(f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>')

    print_when_it_answers(started(), served.studies, served.conf)


def _as_html(line: Line) -> str:
    link = f'<a href="{escape(line.link)}">{escape(line.link)}</a> ' if line.link else ""
    text = re.sub("`(.*?)`", r"<code>\1</code>", escape(line.text))
    return f"<b>{escape(line.title)}</b><span>{link}{text}</span>"


def _images(served: MONAILabelApp) -> str:
    datastore = served.datastore()
    counts = f"{len(datastore.list_images())} images, {len(datastore.get_labeled_images())} with a final label."
    return f"<h2>Images</h2><p>{counts} {escape(served.conf.get('about', ''))}</p>"


def _models(served: MONAILabelApp) -> str:
    datastore = served.datastore()
    rows = ""
    for name, task in sorted(served._trainers.items()):
        cells = [name, ", ".join(task.model.labels), _weights(task), _prompts(task)]
        cells = [escape(cell) for cell in cells]
        cells += [str(len(task.labelled(datastore))), _training(task)]
        rows += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    titles = ("Model", "Classes", "Served", "Prompts answered by", "Labels", "Last training")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"<h2>Models</h2><table><tr>{head}</tr>{rows}</table>"


def _weights(task: RetrainTask) -> str:
    version = Versions(task.model.models_dir).served()
    if version is None:
        return "model.pt" if task.model.trained else "not trained yet: points and boxes first"
    return version.file + (f", Dice {version.score:.3f}" if version.score is not None else "")


def _prompts(task: RetrainTask) -> str:
    """Which weights answer points and boxes, and how well they and the others follow them."""
    model = task.model
    if not model.trained and model.pretrained is None:
        return "nothing yet"
    weights, version = model.prompt_weights(), Versions(model.models_dir).served()
    name = "published weights" if weights == PUBLISHED else model.known_as(weights)
    if version is None or version.prompt_score is None or version.published_prompt_score is None:
        return name
    own, published = f"{version.file} {version.prompt_score:.3f}", f"published {version.published_prompt_score:.3f}"
    return f"{name} (Dice: {own}, {published})"


def _training(task: RetrainTask) -> str:
    stats = task.stats()
    if "message" in stats or not stats:
        return escape(stats.get("message", "none"))
    done, total = int(stats["epoch"]), int(stats["total_epochs"])
    return f'<progress value="{done}" max="{total}"></progress> epoch {done} of {total}'
