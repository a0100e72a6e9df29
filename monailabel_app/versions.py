"""``python -m monailabel_app.versions BUNDLE``: the versions of a model with their scores, and bringing one back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from monailabel_app.lib.model_versions import PUBLISHED, Version, Versions


def main(words: list[str] | None = None) -> int:
    """Print the table, or serve a version.

    Returns:
        exit status.
    """
    parser = argparse.ArgumentParser(
        description="Show the versions of a bundle's model and which one is served, or serve another."
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle, for example bundles/hippocampus")
    parser.add_argument("--serve", metavar="FILE", help="bring this version back: model_v1.pt, ..., or published")
    arguments = parser.parse_args(words)
    if not (arguments.bundle / "configs" / "metadata.json").is_file():
        print(f"{arguments.bundle} is not a bundle: it has no configs/metadata.json.", file=sys.stderr)
        return 1
    versions = Versions(arguments.bundle / "models")
    if arguments.serve:
        try:
            versions.serve(arguments.serve)
        except ValueError as err:
            print(err, file=sys.stderr)
            return 1
    table(versions)
    return 0


def table(versions: Versions) -> None:
    """Print all versions, the served one marked."""
    known, served = versions.list(), versions.served()
    if not known:
        print(f"{versions.models_dir} has no version yet: the first training of the app makes one.")
        return
    scores = f"{'Dice':>6}{'served then':>13}{'prompts':>9}{'published':>11}"
    print(f"{'':2}{'file':<15}{'made':<27}{scores}{'labels':>8}{'held back':>11}  note")
    for version in known:
        mark = "→ " if served is not None and version.file == served.file else "  "
        print(f"{mark}{_row(version)}")
    if not versions.served_file.is_file():
        print(f"→ {PUBLISHED}: weights that training starts from; they answer prompts")
    elif served is None:
        print("→ model.pt: it was not put there by the app")
    elif not served.follows_prompts:
        print(f"→ {PUBLISHED}: weights that training starts from; they answer prompts, because they follow them better")


def _row(version: Version) -> str:
    measured = (version.score, version.served_score, version.prompt_score, version.published_prompt_score)
    dice, then, prompts, published = (f"{v:.3f}" if v is not None else "–" for v in measured)
    scores = f"{dice:>6}{then:>13}{prompts:>9}{published:>11}"
    numbers = f"{scores}{len(version.trained_on):>8}{len(version.held_back):>11}"
    return f"{version.file:<15}{version.made:<27}{numbers}  {version.note}"


if __name__ == "__main__":
    sys.exit(main())
