"""Who imports whom: what CONTRIBUTING.md says that a room knows nothing of."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "scripts" / "medsaga"
NOT_KNOWN = {
    "networks": {"optimizers", "data", "bundle"},
    "optimizers": {"networks", "bundle", "data"},
    "reading": {"data", "networks"},
    "data": {"networks"},
    "transforms": {"bundle"},
    "inferers": {"bundle"},
    "metrics": {"bundle"},
    "handlers": {"bundle"},
    "engines": {"bundle"},
    "active_learning": {"bundle"},
    "memory": {"networks"},
    "export": {"data"},
    "verify": {"data"},
    "bundle": {"data"},
}


def imports(file: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in it."""
    package = ("medsaga", *file.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(room: str) -> set[str]:
    """Rooms that the files of a room import from."""
    found = set().union(*(imports(file) for file in sorted((PACKAGE / room).rglob("*.py"))))
    return {name.split(".")[1] for name in found if name.startswith("medsaga.")} - {room}


@pytest.mark.parametrize("room", NOT_KNOWN)
def test_a_room_imports_nothing_of_what_it_knows_nothing_of(room):
    assert (PACKAGE / room).is_dir()
    assert not rooms_of(room) & NOT_KNOWN[room]


def test_nothing_imports_the_experiments_or_the_app():
    for file in PACKAGE.rglob("*.py"):
        names = imports(file)
        assert not [name for name in names if name.startswith(("monailabel_app", "lib."))], file
        if (PACKAGE / "experiments") not in file.parents:
            assert not [name for name in names if name.startswith("medsaga.experiments")], file
