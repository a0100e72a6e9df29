"""Pages of the repository lead where they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for pair in LINK.findall(page.read_text()):
        link = "".join(pair)
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked():
    linked = {
        (page.parent / "".join(pair).partition("#")[0]).resolve()
        for page in PAGES
        for pair in LINK.findall(page.read_text())
    }
    assert not [str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md") if page not in linked]


def test_the_site_builds_strictly(tmp_path):
    """Warnings are errors: of links, anchors, pages that are not in the navigation, and docstrings."""
    pytest.importorskip("mkdocstrings", reason="MkDocs is not installed: pip install 'medsaga[docs]'")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    network = (tmp_path / "site" / "api" / "networks.html").read_text()
    assert 'id="medsaga.networks.SamSegmenter.encode"' in network and ":class:" not in network
