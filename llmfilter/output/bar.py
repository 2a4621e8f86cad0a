"""A bar at the end of what a terminal shows, drawn by a thread of its own: a stopped terminal stops nothing else."""

import threading
from collections.abc import Callable

from llmfilter.output.terminal import CLEAR, Terminal
from llmfilter.output.writer import Write

REFRESH_S = 0.25
CLOSE_S = 1.0
_PAINTED = "\x1b[32m{}\x1b[90m{}\x1b[m"


class Bar:
    """Shows a line of text, from now on again and again, while no other llmfilter does so on its terminal.

    draw: returns the line for this terminal.
    """

    def __init__(self, terminal: Terminal, draw: Callable[[Terminal], str]) -> None:
        self._terminal = terminal
        self._draw = draw
        self._shown = ""
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write_above(self, lines: bytes, write: Write) -> None:
        """Write whole lines above the bar, whichever llmfilter has drawn it."""
        with self._writing:
            write(CLEAR + lines + self._shown.encode() if self._terminal.is_ours else lines)

    def step_aside(self) -> None:
        """Leave the line to what comes next, until the bar is drawn again; wait for nothing."""
        if self._writing.acquire(blocking=False):
            try:
                if self._shown and not self._terminal.is_stopped:
                    self._shown = ""
                    self._terminal.write(CLEAR)
            finally:
                self._writing.release()

    def close(self) -> None:
        """Take the bar away; where the terminal is stopped, as soon as it goes on."""
        self._ended.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._refresh(self._terminal.is_ours and self._terminal.claim())
            self._ended.wait(REFRESH_S)
        self._refresh(False)

    def _refresh(self, is_shown: bool) -> None:
        with self._writing:
            if is_shown or self._shown:
                self._shown = self._draw(self._terminal) if is_shown else ""
                self._terminal.write(CLEAR + self._shown.encode())
        if not is_shown:
            self._terminal.release()


def meter(fraction: float, columns: int, is_painted: bool) -> str:
    """Return a bar of so many columns, of which a fraction is filled."""
    filled = round(fraction * columns)
    if is_painted:
        return _PAINTED.format("━" * filled, "━" * (columns - filled))
    return "━" * filled + " " * (columns - filled)
