"""What MkDocs builds besides the pages in ``docs/``: README, CONTRIBUTING, the bundles' pages and the API."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scripts" / "medsaga"

_ROLE = re.compile(r":(?:class|func|meth|mod|data):\s*<code>(~?)([\w.]+)</code>")
_MATHS = re.compile(r"(?:<p>\.\. math::\s*|:math:\s*<code>)(.*?)(?:</p>|</code>)", re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def _rooms() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE)]) if module.ispkg)


def _pages() -> dict[Path, str]:
    """Files of the repository outside ``docs/`` → where they are in the site."""
    bundles = sorted(ROOT.glob("bundles/*/docs/README.md"))
    pages = {ROOT / "README.md": "index.md", ROOT / "CONTRIBUTING.md": "contributing.md"}
    return {**pages, **{page: f"bundles/{page.parent.parent.name}.md" for page in bundles}}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    bundles = [path for path in _pages().values() if path.startswith("bundles/")]
    rooms = [{room: f"api/{room}.md"} for room in _rooms()]
    config.nav += [{"Pages of the bundles": bundles}, {"API": rooms}, {"Contributing": "contributing.md"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, path in _pages().items():
        files.append(File.generated(config, path, content=source.read_text(encoding="utf-8")))
    for room in _rooms():
        files.append(File.generated(config, f"api/{room}.md", content=f"# medsaga.{room}\n\n::: medsaga.{room}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to the site's pages; those to other files of the repository become their paths."""
    path = page.file.src_uri
    pages = _pages()
    source = next((source for source, place in pages.items() if place == path), ROOT / "docs" / path)
    depth = "../" * path.count("/")

    def link(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if target.startswith(("http://", "https://")):
            return match[0]
        file = (source.parent / target).resolve()
        if file in pages:
            return f"{image}[{text}]({depth}{pages[file]}{anchor})"
        if file.is_relative_to(ROOT / "docs"):
            return f"{image}[{text}]({depth}{file.relative_to(ROOT / 'docs')}{anchor})"
        return f"{text} (`{file.relative_to(ROOT)}`)"

    if path.startswith("api/"):
        return markdown
    return re.sub(r'src="docs/', f'src="{depth}', _LINK.sub(link, markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name classes and formulas as Sphinx does."""

    def reference(match: re.Match[str]) -> str:
        shown = match[2].rpartition(".")[2] if match[1] else match[2]
        return f'<autoref identifier="{match[2]}" optional><code>{shown}</code></autoref>'

    return _MATHS.sub(r"<code>\1</code>", _ROLE.sub(reference, html)) if page.file.src_uri.startswith("api/") else html
