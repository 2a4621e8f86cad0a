"""README.md against the program.

After a change of the help, `PYTHONPATH=tests python tests/whole/test_readme.py` writes it into README.md.
"""

import argparse
import re
import shlex
import subprocess
import sys

import pytest
import readme
import test_dist
import test_hosts
import test_recipes
from readme import README, find_lines, shell_lines

from llmfilter.options import make_parser

ROOT = README.parent
# Lines of shell that no test here runs, by how they begin.
NOT_RUN = {
    "sudo apt install ": "changes the machine",
    "make ": "what a change has to pass (.ci/run) has lint, test and demo; `make test-dist` has install",
    "pipx install .": "`make test-dist` does it",
    "uv tool install .": "`make test-dist` does it",
    "vllm serve ": "needs GPUs",
    "llama-server ": "needs a model; `make demo` has llama.cpp as a library",
    "kill -9": "names a signal; test_kill.py sends it",
}
RUNNING = (test_dist, test_hosts, test_recipes)  # once these are imported, readme.STARTS has all
HELP = re.compile(r"(?<=^```\n)usage: llmfilter .*?(?=^```$)", re.DOTALL | re.MULTILINE)
MAKE = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
PATHS = re.compile(r"(?:tests|llmfilter)/[\w./]*\w|Makefile")


def program_help() -> str:
    return subprocess.check_output([sys.executable, "-m", "llmfilter", "--help"], text=True)


def readme_help() -> str:
    found = HELP.findall(README.read_text())
    assert len(found) == 1
    return str(found[0])


def test_the_help_in_the_readme_is_the_programs() -> None:
    assert readme_help() == program_help(), "PYTHONPATH=tests python tests/whole/test_readme.py mends it"


@pytest.mark.parametrize("action", make_parser()._actions, ids=lambda action: action.dest)
def test_every_option_is_in_the_readmes_help(action: argparse.Action) -> None:
    assert re.search(rf"^ .*{re.escape(', '.join(action.option_strings))}\b", readme_help(), re.MULTILINE)


@pytest.mark.parametrize("line", shell_lines())
def test_every_line_of_shell_in_the_readme_is_run_by_a_test(line: str) -> None:
    run = any(line in find_lines(start) for start in readme.STARTS)
    assert run != line.startswith(tuple(NOT_RUN)), "a test that @runs it is missing"


@pytest.mark.parametrize("start", NOT_RUN)
def test_what_is_not_run_is_there(start: str) -> None:
    assert any(line.startswith(start) for line in shell_lines())


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
    if target.startswith("#"):
        titles = re.findall(r"^##+ (.*)", README.read_text(), re.MULTILINE)
        assert target[1:] in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    else:
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
