"""`make demo`: the main job, as one would type it, on a real model; then the same again from the cache."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llama

RECORDS = Path("tests/demo/chronicle.jsonl")
ANSWERS = Path(".demo/answers.jsonl")
COMMAND = f"cat {RECORDS} | llmfilter -m {llama.MODEL} -p tests/demo/prompt.md -o max_tokens=60 > {ANSWERS}"


def main() -> None:
    """Exits with a message, and not with 0, if anything is not as it should be."""
    ANSWERS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llmfilter-demo-") as cache:
        with llama.running() as url:
            environ = environment(url, cache)
            print(f"llama.cpp's server with SmolLM2-135M-Instruct is up; an empty cache is in {cache}.\n")
            print(f"$ export OPENAI_BASE_URL={url}")
            asked_s = run(COMMAND, environ)
            first = sorted(ANSWERS.read_bytes().splitlines())
        rows = len(RECORDS.read_bytes().splitlines())
        print(f"({rows} records in {asked_s:.1f} s)\n")
        run(f"head -5 {ANSWERS}", environ)
        print("\nThe server is stopped. The same command again, so that only the cache can answer:\n")
        replayed_s = run(COMMAND, environ)
        if len(first) != rows or sorted(ANSWERS.read_bytes().splitlines()) != first:
            sys.exit(f"{ANSWERS}: not the same {rows} lines as before")
        print(f"(the same {rows} lines in {replayed_s:.1f} s; `make install` puts llmfilter on your PATH)")


def environment(url: str, cache: str) -> dict[str, str]:
    """This environment, with the command of this virtual environment and nobody's key."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "LLMFILTER_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environ | {"PATH": path, "OPENAI_BASE_URL": url, "LLMFILTER_CACHE": cache}


def run(command: str, environ: dict[str, str]) -> float:
    """Shows a command and runs it in the shell; returns the seconds it took, exits if it failed."""
    print(f"$ {command}", flush=True)
    started_at = time.monotonic()
    process = subprocess.Popen(command, shell=True, env=environ)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has told it too, and it finishes what was sent
        raise
    if status:
        sys.exit(f"exit status {status}")
    return time.monotonic() - started_at


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
