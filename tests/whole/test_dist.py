"""What the package installs beside the program: a manual page that man shows, completions that real shells take."""

import os
import pty
import re
import select
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import which

import pytest
from server import PATIENCE_S

from llmfilter import __version__

ROOT = Path(__file__).parents[2]
BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"
# Each shell looks where it would in a prefix's share folder, and shows the words that a line came to.
STARTS = {
    "bash": (
        ["bash", "--rcfile", "start", "-i"],
        "start",
        "BASH_COMPLETION_USER_DIR={share}/bash-completion\n"
        f". {BASH_COMPLETION}\n"
        "llmfilter() {{ printf 'args:'; printf '[%s]' \"$@\"; echo ' shown'; }}; PS1='ready> '",
    ),
    "zsh": (
        ["zsh", "-i"],
        ".zshrc",
        "fpath=({share}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D\n"
        "llmfilter() {{ printf 'args:'; printf '[%s]' \"$@\"; echo ' shown' }}; PS1='ready> '",
    ),
    "fish": (
        ["fish", "-i"],
        "fish/config.fish",
        "function llmfilter; printf 'args:'; printf '[%s]' $argv; echo ' shown'; end\n"
        "function fish_prompt; echo -n 'ready> '; end; function fish_greeting; end",
    ),
}
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
        (folder / start).parent.mkdir(exist_ok=True)
        (folder / start).write_text(text.format(share=share) + "\n")
        folders = {"HOME": folder, "ZDOTDIR": folder, "XDG_CONFIG_HOME": folder, "XDG_DATA_HOME": share}
        environ = {"PATH": os.environ["PATH"], "TERM": "dumb", **{key: str(path) for key, path in folders.items()}}
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
    if not which(request.param) or (request.param == "bash" and not Path(BASH_COMPLETION).exists()):
        pytest.skip(f"{request.param} with its completions is not here")
    (tmp_path / "folder").mkdir()
    (tmp_path / "some").mkdir()
    for name in ("prompt.md", "schema.json", "folder/stats.json", "sums.txt"):
        (tmp_path / name).touch()
    with closing(Shell(request.param, tmp_path, share)) as shell:
        shell.read_until("ready> ")
        yield shell


def test_tab_completes_options_files_and_folders(shell: Shell) -> None:
    for typed, meant in LINES:
        assert shell.arguments(typed) == meant, typed


@pytest.mark.skipif(not which("man"), reason="man is not here")
def test_man_shows_the_page_with_what_a_shell_takes(share: Path) -> None:
    command = ["man", "--warnings", "-Tutf8", "-l", str(share / "man/man1/llmfilter.1")]
    environ = {"PATH": os.environ["PATH"], "MANWIDTH": "100", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    page = re.sub(r".\x08|\x1b\[[0-9;]*m", "", shown.stdout)
    for words in ("grep '^{' errors.jsonl | jq -c '.input | objects'", "{{name}}", "~/.cache/llmfilter"):
        assert words in page


def test_the_wheel_holds_the_package_and_its_licence(wheel: Path) -> None:
    about = wheel / f"llmfilter-{__version__}.dist-info"
    assert {path for path in wheel.iterdir() if path.is_dir()} == {
        wheel / "llmfilter",
        about.with_suffix(".data"),
        about,
    }
    assert "\nLicense-Expression: MIT\nLicense-File: llmfilter/LICENSE\n" in (about / "METADATA").read_text()
    assert "WITHOUT WARRANTY" in (about / "licenses/llmfilter/LICENSE").read_text()
