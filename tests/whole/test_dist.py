"""What the package installs beside the program: a manual page that man shows, completions that real shells take."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from readme import find_line, runs
from server import PATIENCE_S
from shell import RUN, write_script

from llmfilter import __version__

ROOT = Path(__file__).parents[2]
BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"
# Each shell looks into its user's ~/.local/share, as the README has it, and shows the words that a line came to.
STARTS = {
    "bash": (
        ["bash", "--rcfile", "start", "-i"],
        "start",
        f". {BASH_COMPLETION}\n"
        "llmfilter() {{ printf 'args:'; printf '[%s]' \"$@\"; echo ' shown'; }}; PS1='ready> '",
    ),
    "zsh": (
        ["zsh", "-i"],
        ".zshrc",
        "{zsh_line}; autoload -Uz compinit; compinit -u -D\n"
        "llmfilter() {{ printf 'args:'; printf '[%s]' \"$@\"; echo ' shown' }}; PS1='ready> '",
    ),
    "fish": (
        ["fish", "-i"],
        ".config/fish/config.fish",
        "function llmfilter; printf 'args:'; printf '[%s]' $argv; echo ' shown'; end\n"
        "function fish_prompt; echo -n 'ready> '; end; function fish_greeting; end",
    ),
}
ZSH_LINE = "fpath+="
# What is typed, \t being the Tab key → the arguments that it comes to.
LINES = [
    ("--sche\tsc\t", "--schema schema.json"),
    ("-p pro\t", "-p prompt.md"),
    ("--prompt pro\t", "--prompt prompt.md"),
    ("--stats fol\tst\t", "--stats folder/stats.json"),
    ("-s @pro\t", "-s @prompt.md"),
    ("-s @folder/st\t", "-s @folder/stats.json"),
    ("-q -s @folder/st\t --ver\t", "-q -s @folder/stats.json --version"),
    ("--cache so\t", "--cache some"),
    ("--no-c\t-k --ke\t", "--no-cache -k --keep-order"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all that the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (packed,) = folder.glob("*.whl")
    with zipfile.ZipFile(packed) as content:
        content.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def share(wheel: Path) -> Path:
    """The wheel's share folder."""
    (found,) = wheel.glob("*.data/data/share")
    return found


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, name: str, folder: Path, share: Path) -> None:
        command, start, text = STARTS[name]
        shutil.copytree(share, folder / ".local/share")
        (folder / start).parent.mkdir(parents=True, exist_ok=True)
        (folder / start).write_text(text.format(zsh_line=find_line(ZSH_LINE)) + "\n")
        environ = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder)}
        self._unread = ""
        self._terminal, end = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command], cwd=folder, env=environ, stdin=end, stdout=end, stderr=end
        )
        os.close(end)

    def arguments(self, typed: str) -> str:
        """Type arguments of llmfilter; return those that it gets."""
        os.write(self._terminal, f"llmfilter {typed}\n".encode())
        shown = self.read_until("] shown")
        self.read_until("ready> ")
        return shown[shown.rindex("args:[") + 6 :].replace("][", " ").rstrip("/")

    def read_until(self, mark: str) -> str:
        """Read what it prints up to a mark."""
        deadline = time.monotonic() + PATIENCE_S
        while mark not in self._unread:
            left_s = deadline - time.monotonic()
            assert left_s > 0 and select.select([self._terminal], [], [], left_s)[0], self._unread
            self._unread += os.read(self._terminal, 4096).decode()
        text, _, self._unread = self._unread.partition(mark)
        return text

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@pytest.fixture(params=STARTS)
def shell(request: pytest.FixtureRequest, tmp_path: Path, share: Path) -> Iterator[Shell]:
    """A shell in a folder with some files."""
    if not shutil.which(request.param) or (request.param == "bash" and not Path(BASH_COMPLETION).exists()):
        pytest.skip(f"{request.param} with its completions is not here")
    (tmp_path / "folder").mkdir()
    (tmp_path / "some").mkdir()
    for name in ("prompt.md", "schema.json", "folder/stats.json", "sums.txt"):
        (tmp_path / name).touch()
    with closing(Shell(request.param, tmp_path, share)) as shell:
        shell.read_until("ready> ")
        yield shell


@runs(ZSH_LINE)
def test_tab_completes_options_files_and_folders(line: str, shell: Shell) -> None:
    for typed, meant in LINES:
        assert shell.arguments(typed) == meant, typed


@pytest.mark.skipif(not shutil.which("man"), reason="man is not here")
def test_man_shows_the_page_with_what_a_shell_takes(share: Path) -> None:
    command = ["man", "--warnings", "-Tutf8", "-l", str(share / "man/man1/llmfilter.1")]
    environ = {"PATH": os.environ["PATH"], "MANWIDTH": "100", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    page = re.sub(r".\x08|\x1b\[[0-9;]*m", "", shown.stdout)
    for words in ("grep '^{' errors.jsonl | jq -c '.input | objects'", "{{name}}", "~/.cache/llmfilter"):
        assert words in page


@runs("cp -rsf ")
def test_what_an_installer_leaves_out_is_linked(line: str, share: Path, tmp_path: Path) -> None:
    tool = tmp_path / ".local/share/uv/tools/llmfilter"
    shutil.copytree(share, tool / "share")
    (tool / "bin").mkdir()
    (tmp_path / ".local/bin").mkdir()
    (tmp_path / ".local/bin/llmfilter").symlink_to(write_script(tool / "bin/llmfilter", RUN))
    environ = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/.local/bin:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", line], env=environ, check=True)
    for file in (file for file in share.rglob("*") if file.is_file()):
        assert (tmp_path / ".local/share" / file.relative_to(share)).read_text() == file.read_text()
    if shutil.which("man"):
        found = subprocess.check_output(["man", "-w", "llmfilter"], env=environ, text=True)
        assert found == f"{tool}/share/man/man1/llmfilter.1\n"


def test_make_install_says_what_makes_the_command_known(tmp_path: Path) -> None:
    """What stands in for Python makes an environment that has nothing but the program."""
    program = write_script(tmp_path / "program", RUN)
    script = f'[ "$2" != venv ] || {{ mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; cp {program} "$4/bin/llmfilter"; }}'
    make = ["make", "install", f"PYTHON={write_script(tmp_path / 'python', script)}"]
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    *_, advice, added = subprocess.check_output(make, cwd=ROOT, env=environ, text=True).splitlines()
    assert "is not on your PATH" in advice
    (tmp_path / ".profile").write_text(added + "\n")
    login = ["sh", "-lc", "command -v llmfilter; echo $PATH"]
    found, path = subprocess.check_output(login, env=environ, text=True).splitlines()
    assert found == f"{tmp_path}/.local/bin/llmfilter"
    said = subprocess.check_output(make, cwd=ROOT, env={**environ, "PATH": path}, text=True)
    assert "PATH" not in said


def test_the_wheel_holds_the_package_and_its_licence(wheel: Path) -> None:
    about = wheel / f"llmfilter-{__version__}.dist-info"
    assert {path for path in wheel.iterdir() if path.is_dir()} == {
        wheel / "llmfilter",
        about.with_suffix(".data"),
        about,
    }
    metadata = (about / "METADATA").read_text()
    assert "\nLicense-Expression: MIT\nLicense-File: llmfilter/LICENSE\n" in metadata
    (tried,) = re.findall(r"^\t@for python in (.*?);", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)", metadata, re.MULTILINE)
    assert named == [python.removeprefix("python") for python in tried.split()]
    assert "\nKeywords: " in metadata
    assert "WITHOUT WARRANTY" in (about / "licenses/llmfilter/LICENSE").read_text()
