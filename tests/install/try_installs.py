"""Install the built wheel and sdist with pip, pipx and uv, and the sources with make, on each Python.

Each time in a new home folder, where the program, its manual page and its completions must be found.
`make test-dist` runs it with the Python of an environment that has build, pipx and uv.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
SHARED = (
    "man/man1/llmfilter.1",
    "bash-completion/completions/llmfilter",
    "zsh/site-functions/_llmfilter",
    "fish/vendor_completions.d/llmfilter.fish",
)
# The README's line for what uv does not link.
LINK = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("cp -rsf "))


class Home:
    """A new user's home folder: nothing is installed in it, and only the downloads are kept elsewhere."""

    def __init__(self, folder: Path, downloads: Path) -> None:
        self.folder = folder
        self.share = folder / ".local/share"
        foreign = ("XDG_", "PYTHON", "PIPX_", "UV_TOOL", "UV_PYTHON", "VIRTUAL_ENV", "LLMFILTER_", "OPENAI_")
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "HOME": str(folder),
            "PATH": f"{folder}/.local/bin:/usr/local/bin:/usr/bin:/bin",
            "PIP_CACHE_DIR": str(downloads / "pip"),
            "UV_CACHE_DIR": str(downloads / "uv"),
            "UV_PYTHON_DOWNLOADS": "never",
        }

    def run(self, *command: str | Path, input: str = "") -> str:
        """Run a command and return what it prints; a failure shows all that it wrote, and ends everything."""
        done = subprocess.run(
            command, check=False, cwd=self.folder, env=self._environ, input=input, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def install_with_pip(home: Home, python: str, package: Path) -> None:
    home.run(python, "-m", "venv", home.folder / ".local")
    home.run(home.folder / ".local/bin/pip", "install", "--quiet", package)


def install_with_pipx(home: Home, python: str, package: Path) -> None:
    home.run(TOOLS / "pipx", "install", "--quiet", "--python", python, str(package))


def install_with_uv(home: Home, python: str, package: Path) -> None:
    home.run(TOOLS / "uv", "tool", "install", "--quiet", "--python", python, str(package))
    home.run("sh", "-c", LINK)


def install_with_make(home: Home, python: str, package: Path) -> None:
    said = home.run("make", "-C", package, "install", f"PYTHON={python}", f"PREFIX={home.folder}/.local")
    if "PATH" in said:
        sys.exit(f"it is on the PATH: {said}")


INSTALLERS: dict[str, Callable[[Home, str, Path], None]] = {
    "pip": install_with_pip,
    "pipx": install_with_pipx,
    "uv": install_with_uv,
    "make": install_with_make,
}


def find_pythons(least: int = 11) -> Iterator[tuple[str, str]]:
    """Yield version and path of each Python from 3.`least` on that is on the PATH or pyenv's, one of each minor."""
    seen = set()
    folders = [*os.environ["PATH"].split(":"), *map(str, Path.home().glob(".pyenv/versions/*/bin"))]
    for minor in range(least, 30):
        for path in (f"{folder}/python3.{minor}" for folder in folders):
            if minor not in seen and os.access(path, os.X_OK):
                asked = subprocess.run([path, "-c", "import venv, ensurepip"], check=False, capture_output=True)
                if asked.returncode == 0:
                    seen.add(minor)
                    yield f"3.{minor}", path


def build(folder: Path) -> Sequence[Path]:
    """Build the sdist, and from it the wheel; return both."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.iterdir())


def check(home: Home) -> None:
    """Try the program as its user would; exit with what is amiss."""
    home.run("llmfilter", "--version")
    (home.folder / "prompt.md").write_text("{id}")
    request = home.run("llmfilter", "-n", "-m", "tiny", "-p", "prompt.md", input='{"id": 17}\n')
    missing = [name for name in SHARED if not (home.share / name).read_text().strip()]
    missing += [word for word in ('"17"', '"tiny"') if word not in request]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tries = [(name, package) for package in build(folder / "dist") for name in ("pip", "pipx", "uv")]
        for version, python in find_pythons():
            for installer, package in [*tries, ("make", ROOT)]:
                label = f"{version} {installer:4} {package.name}"
                home = Home(folder / label.replace(" ", "-"), folder / "downloads")
                home.folder.mkdir()
                INSTALLERS[installer](home, python, package)
                check(home)
                print(f"{label}: ok", flush=True)


if __name__ == "__main__":
    main()
