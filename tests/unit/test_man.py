"""man: the manual page says what the code does."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmfilter
from llmfilter.man import render
from llmfilter.options import make_parser
from llmfilter.stats import Price, Stats

SOURCES = [path.read_text("utf-8") for path in Path(llmfilter.__file__).parent.rglob("*.py")]


def section(title: str) -> str:
    """A section of the page as text, without the markup of its letters."""
    (found,) = re.findall(rf"^\.SH {title}\n(.*?)(?=^\.SH|\Z)", render(), re.DOTALL | re.MULTILINE)
    return str(re.sub(r"\\f[BIR]", "", found).replace(r"\-", "-"))


def terms(title: str) -> set[str]:
    """What the section explains, item by item."""
    return {term for line in re.findall(r"^\.TP\n(.*)", section(title), re.MULTILINE) for term in line.split(", ")}


def first_arguments(*functions: str) -> Iterator[str]:
    """The words that the package's code gives to the functions first."""
    for source in SOURCES:
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in functions:
                words = [node.value for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant)]
                yield from (str(word) for word in words)


def test_every_option_is_explained() -> None:
    options = {term.split(" ")[0] for term in terms("OPTIONS")}
    assert options == set(make_parser()._option_string_actions)


def test_every_kind_of_error_is_explained() -> None:
    assert terms("ERRORS") == set(first_arguments("RowError", "Retryable", "ModelMissing", "make"))


def test_every_counter_is_explained() -> None:
    assert terms("STATISTICS") == set(Stats(price=Price(1, 1, 1)).as_dict())


def test_every_variable_of_the_environment_is_explained() -> None:
    read = {name for source in SOURCES for name in re.findall(r'environ(?:\.get\(|\[)"(\w+)"', source)}
    assert {"OPENAI_API_KEY", "TERM"} < read <= terms("ENVIRONMENT")


def test_every_signal_is_explained() -> None:
    caught = {name for source in SOURCES for name in re.findall(r"signal\.(SIG[A-Z0-9]+)\b(?!_)", source)}
    assert {"SIGINT", "SIGUSR1"} < caught <= terms("SIGNALS")


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("PROMPTS", ["{name}", "{{name}}", "{user.name}", "{items.0.name}", "{.}", "#!"]),
        ("ANSWERS", ["think block", "--schema", "--reask", "--text"]),
        ("CACHE", ["-H lines", "--cache", "mdb_load"]),
        ("FILES", [r"\(ti/.cache/llmfilter"]),
        ("EXIT STATUS", ["128+n", "141"]),
        ("EXAMPLES", [r"grep \(aq\(ha{\(aq errors.jsonl | jq -c \(aq.input | objects\(aq"]),
    ],
)
def test_the_page_is_whole(title: str, words: list[str]) -> None:
    assert all(word in section(title) for word in words)


def test_no_line_is_a_request_by_accident() -> None:
    requests = {line.split()[0] for line in render().splitlines() if line.startswith((".", "'"))}
    assert requests == {".TH", ".SH", ".SS", ".TP", ".PP", ".nf", ".fi"}
