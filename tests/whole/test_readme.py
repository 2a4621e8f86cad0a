"""README.md against the program. After a change of the help, run this file: it writes the help into README.md."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmfilter.options import make_parser

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
HELP = re.compile(r"(?<=^```\n)usage: llmfilter .*?(?=^```$)", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```(?:sh|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MAKE = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
PATHS = re.compile(r"(?:tests|llmfilter)/[\w./]*\w|Makefile")


def program_help() -> str:
    return subprocess.check_output([sys.executable, "-m", "llmfilter", "--help"], text=True)


def readme_help() -> str:
    found = HELP.findall(README.read_text())
    assert len(found) == 1
    return str(found[0])


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each llmfilter in lines of shell, also of those in a quoted command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    args: list[str] | None = None
    for token in lexer:
        if token == "llmfilter":
            args = []
        elif "llmfilter " in token:
            yield from commands(token[token.index("llmfilter ") :])
        elif args is not None:
            if token[0] in "|<>;&)" or token == "2":  # of 2>
                yield args
                args = None
            else:
                args.append(token)
    if args is not None:
        yield args


def shell_lines() -> list[str]:
    lines = [line.removeprefix("$ ") for block in SHELL.findall(README.read_text()) for line in block.splitlines()]
    return [line for line in lines if "llmfilter -" in line and not line.startswith(("{", "#"))]


def test_the_help_in_the_readme_is_the_programs() -> None:
    assert readme_help() == program_help(), "python tests/whole/test_readme.py mends it"


@pytest.mark.parametrize("action", make_parser()._actions, ids=lambda action: action.dest)
def test_every_option_is_in_the_readmes_help(action: argparse.Action) -> None:
    assert re.search(rf"^ .*{re.escape(', '.join(action.option_strings))}\b", readme_help(), re.MULTILINE)


def test_there_are_commands_to_check() -> None:
    assert len(shell_lines()) > 10


@pytest.mark.parametrize("line", shell_lines())
def test_every_command_in_the_readme_is_one_that_the_program_understands(line: str) -> None:
    found = list(commands(line))
    assert found
    for args in found:
        make_parser().parse_args(args)


def test_the_options_in_the_readmes_tables_are_the_programs() -> None:
    rows = [line.split("|")[1:-1] for line in README.read_text().splitlines() if line.startswith("|")]
    quoted = [shlex.split(code) for row in rows for cell in row for code in re.findall(r"`(-[^`]+)`", cell)]
    assert len(quoted) > 10
    for option, *rest in quoted:
        assert option in make_parser()._option_string_actions
        if rest and rest != ["N"]:
            make_parser().parse_args([option, *rest])


@pytest.mark.parametrize("path", sorted(set(PATHS.findall(README.read_text()))))
def test_every_path_in_the_readme_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", README.read_text()))))
def test_every_link_in_the_readme_leads_somewhere(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()


@pytest.mark.parametrize("target", sorted(set(MAKE.findall(README.read_text()))))
def test_every_make_target_in_the_readme_is_in_the_makefile(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_shows_the_demos_prompt_and_answers_to_its_records() -> None:
    prompt = (ROOT / "tests/demo/prompt.md").read_text()
    assert f"$ cat tests/demo/prompt.md\n{prompt}$ " in README.read_text()
    records = (ROOT / "tests/demo/chronicle.jsonl").read_text().splitlines()
    shown = [line for line in README.read_text().splitlines() if line.startswith('{"id": ')]
    assert len(shown) == 3
    assert all(any(line.startswith(record[:-1] + ",") for record in records) for line in shown)


if __name__ == "__main__":
    README.write_text(HELP.sub(lambda _: program_help(), README.read_text(), count=1))
