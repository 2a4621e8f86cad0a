"""A picture of a run, from a real terminal: `make picture` writes it as SVG."""

import asyncio
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from server import Request, Response, Server, completion

COLUMNS, ROWS = 78, 3000
COMMAND = "llmfilter -p prompt.md --price 0.15,0.60,0.075 < data.jsonl > out.jsonl"
MOMENT = 0.63  # of the run
_PARTS = re.compile(r"\x1b\[(\d*)m([^\x1b]*)")
_COLOURS = {"32": "#3fb950", "90": "#57606a", "": "#c9d1d9"}
_WIDE, _HIGH, _MARGIN = 8.4, 20, 14


async def answer(request: Request) -> Response:
    """Some answers are slow, some are refused; most of each prompt is in the server's cache."""
    number = int(request.prompt.split()[-1])
    await asyncio.sleep(0.3 + number % 7 / 20)
    if number % 400 == 13:
        return completion("withheld", "content_filter")
    usage = {"prompt_tokens": 900, "completion_tokens": 60, "prompt_tokens_details": {"cached_tokens": 768}}
    return completion({"label": "good"}, usage=usage)


def record(folder: Path, url: str) -> str:
    """Return all that a run writes on a terminal."""
    (folder / "prompt.md").write_text("How is this? As JSON. {id}")
    (folder / "data.jsonl").write_text("".join(f'{{"id":{each}}}\n' for each in range(ROWS)))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, COLUMNS + 1))
    line = COMMAND.replace("llmfilter", f"exec {sys.executable} -m llmfilter --no-cache -j 64") + " 2>&3"
    environ = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_MODEL": "tiny", "TERM": "xterm-256color"}
    run = subprocess.Popen(
        ["sh", "-c", line.replace("2>&3", f"2>&{theirs}")], cwd=folder, env=environ, pass_fds=[theirs]
    )
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 1 << 16):
            written += data
    except OSError:  # EIO: the last one has closed it
        pass
    run.wait()
    os.close(ours)
    return written.decode()


def choose(written: str) -> list[str]:
    """Return the lines of the picture: the bar at one moment, then what stands there in the end."""
    lines = re.split(r"\r\x1b\[K|\r?\n", written)
    frames = [line for line in lines if " left" in line]
    bar = min(frames, key=lambda frame: abs(int((re.search(r"(\d+)%", frame) or ["", "0"])[1]) / 100 - MOMENT))
    errors = [line for line in lines if line.startswith("line ")][:2]
    return [f"$ {COMMAND}", *errors, bar, "", "… and in the end:", *[line for line in lines if "llmfilter: " in line]]


def draw(lines: list[str]) -> str:
    """Return lines as SVG."""
    longest = max(len(re.sub(_PARTS, r"\2", line)) for line in lines)
    wide, high = round(longest * _WIDE + 2 * _MARGIN), len(lines) * _HIGH + 2 * _MARGIN
    texts = []
    for row, line in enumerate(lines):
        parts = _PARTS.findall(f"\x1b[m{line}")
        spans = "".join(
            f'<tspan fill="{_COLOURS[colour]}">{text.replace("&", "&amp;").replace("<", "&lt;")}</tspan>'
            for colour, text in parts
            if text
        )
        texts.append(f'<text x="{_MARGIN}" y="{_MARGIN + row * _HIGH + 14}" xml:space="preserve">{spans}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="monospace" font-size="14">\n'
        f'<rect width="{wide}" height="{high}" rx="8" fill="#0d1117"/>\n' + "\n".join(texts) + "\n</svg>\n"
    )


def main() -> None:
    """Write the picture."""
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        server.answer = answer
        written = record(Path(folder), server.url)
    Path(__file__).with_name("run.svg").write_text(draw(choose(written)))


if __name__ == "__main__":
    main()
