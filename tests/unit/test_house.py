"""The house: which room may import which; late imports and those for types count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmfilter

HOUSE = Path(llmfilter.__file__).parent
LEAVES = {"ending", "errors", "jsontext", "notices", "stats", "words", "worker"}
# Room → the rooms that it may import beside the leaves; a head stands for itself.
MAY_IMPORT: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "api": set(),
    "answers": set(),
    "cache": {"api", "answers"},
    "input": set(),
    "server": {"api"},
    "output": set(),
    "pipeline": {"input", "output"},
    "modes": {"answers", "api", "cache", "input", "output", "pipeline", "server"},
    "options": set(),
    "origin": {"options", "server"},
    "typed": {"answers", "input"},
    "job": {"answers", "cache", "input", "modes", "options", "origin", "pipeline", "server", "typed"},
    "signals": {"output", "pipeline"},
    "session": {"job", "output", "pipeline", "signals"},
    "cli": {"options", "session", "signals"},
    "man": {"options"},
    "__main__": {"cli"},
}


def room_of(module: str) -> str:
    """Return the folder or the file right below the package that a dotted name is in."""
    return module.split(".")[1]


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names of our own that a file imports, at whatever place."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llmfilter":
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("llmfilter."))


FILES = [path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(HOUSE)) for path in FILES])
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
    others = {room_of(name) for name in imported(path) if name != "llmfilter.__version__"} - {room}
    assert others <= MAY_IMPORT[room] | LEAVES
    if path.name == "__init__.py":
        assert not list(imported(path)), "a folder's docstring is all that stands in its __init__"


def test_no_module_is_part_of_a_circle() -> None:
    names = {".".join(path.relative_to(HOUSE.parent).with_suffix("").parts): path for path in FILES}
    uses = {
        name: {found for found in names if any(f"{each}.".startswith(f"{found}.") for each in imported(path))} - {name}
        for name, path in names.items()
    }
    while uses:
        free = {name for name, used in uses.items() if not used & uses.keys()}
        assert free, f"a circle: {uses}"
        uses = {name: used for name, used in uses.items() if name not in free}


@pytest.mark.parametrize("folder", sorted(path.parent for path in HOUSE.rglob("__init__.py") if path.parent != HOUSE))
def test_a_folder_says_what_it_is_and_what_it_may_import(folder: Path) -> None:
    described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    assert "May import" in described
