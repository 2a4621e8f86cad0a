"""The lines of shell in README.md, and what says which of them a test runs.

@runs("tail ")                                     # how a line of the README begins
def test_a_file_that_grows(line: str, shell: Shell) -> None: ...
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
# What begins so in the text, with something behind it, is a line of shell as well.
COMMANDS = ("#!", "kill ", "llama-server ", "llmfilter ", "make ", "man ", "mdb_dump ", "pipx ", "rm ", "uv ", "vllm ")
STARTS: list[str] = []  # of all lines that a test runs

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_TABLE = re.compile(r"^\|.*\| what to type \|\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE)


def runs(*starts: str, also: Sequence[str] = ()) -> pytest.MarkDecorator:
    """A test that is given, as `line`, the line of shell that begins so; it runs once for each.

    also: lines that it takes with `find_line`.
    """
    STARTS.extend([*starts, *also])
    return pytest.mark.parametrize("line", starts, indirect=True)


def find_line(start: str) -> str:
    """The README's one line of shell that begins so, or is just that."""
    found = find_lines(start)
    assert len(found) == 1, f"the README has {len(found)} lines of shell that begin with {start!r}"
    return found[0]


def find_lines(start: str) -> list[str]:
    lines = shell_lines()
    return [start] if start in lines else [line for line in lines if line.startswith(start)]


def shell_lines() -> list[str]:
    """Each line of shell, without repetitions: lines of a block that no blank line or comment parts are one."""
    text = README.read_text()
    found: list[str] = []
    for language, block in _BLOCK.findall(text):
        if language == "sh":
            found += re.split(r"\n(?:#.*\n|\n)+", re.sub(r"\A(?:#.*\n)+", "", block).rstrip("\n"))
        elif language == "console":
            found += re.findall(r"^\$ (.*)", block, re.MULTILINE)
        elif "\nexamples:\n" in block:
            examples = block.partition("\nexamples:\n")[2].partition("\n\n")[0]
            found += re.findall(r"^  (.*?)(?: +#.*)?$", examples, re.MULTILINE)
    prose = _BLOCK.sub("", text)
    for table in _TABLE.findall(prose):
        cells = [re.split(r"(?<!\\)\|", row)[2].replace(r"\|", "|") for row in table.splitlines()]
        found += [code for cell in cells for code in _CODE.findall(cell) if not code.startswith("-")]
    found += [code for code in _CODE.findall(_TABLE.sub("", prose)) if code.startswith(COMMANDS)]
    return list(dict.fromkeys(found))


def read_block(title: str, language: str) -> str:
    """The one block of code in a language below a heading."""
    _, _, section = README.read_text().partition(f"# {title}\n")
    (found,) = [block for kind, block in _BLOCK.findall(section.partition("\n#")[0]) if kind == language]
    return str(found)
