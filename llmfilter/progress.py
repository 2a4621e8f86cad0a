"""How far a run is: a bar while it runs on a terminal, a line when asked, two lines at the end."""

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING

from llmfilter.output import Write
from llmfilter.stats import Stats

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llmfilter.pipeline import Pipeline

START_S = 0.5  # a short run needs no bar, and need not load what draws it
SAMPLE_S = 1.0
CLOSE_S = 1.0
REFRESHES_PER_S = 4
WINDOW_S = 10.0  # over which the speed is measured: what came from the cache is soon forgotten
_BAR_COLUMNS = 20


class Progress:
    """Watches a pipeline.

    total_bytes: of the input, if it is a file; write: to stderr; with_bar: show a bar there.
    """

    def __init__(self, pipeline: "Pipeline", total_bytes: int | None, write: Write, with_bar: bool) -> None:
        self._write = write
        self._pipeline = pipeline
        self._total_bytes = total_bytes
        self._with_bar = with_bar
        self._bar: Bar | None = None
        self._bar_thread: threading.Thread | None = None
        self._samples: deque[tuple[float, int, float]] = deque([(0.0, 0, 0)])
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(START_S, self._sample)

    def write(self, lines: bytes) -> None:
        """Writes whole lines to stderr, above the bar if there is one."""
        if self._bar:
            self._bar.print_above(lines)
        else:
            self._write(lines)

    def close(self) -> None:
        """Takes the bar away, unless the terminal is stopped."""
        self._timer.cancel()
        if self._bar_thread:
            closing = threading.Thread(target=self._hide_bar, daemon=True)
            closing.start()
            closing.join(CLOSE_S)

    def _show_bar(self) -> None:
        bar = Bar(self)
        bar.show()
        self._bar = bar

    def _hide_bar(self) -> None:
        assert self._bar_thread  # it was shown
        self._bar_thread.join()
        bar, self._bar = self._bar, None
        if bar:
            bar.close()

    def _sample(self) -> None:
        if self._with_bar and not self._bar_thread:
            # In a thread, since a terminal that was stopped (Ctrl-S) must not stop the loop.
            self._bar_thread = threading.Thread(target=self._show_bar, daemon=True)
            self._bar_thread.start()
        now = self._pipeline.stats.seconds
        self._samples.append((now, self._done, self._pipeline.snapshot().bytes_done))
        while self._samples[0][0] < now - WINDOW_S:
            self._samples.popleft()
        self._timer = self._loop.call_later(SAMPLE_S, self._sample)

    @property
    def _done(self) -> int:
        return self._pipeline.stats.answered + self._pipeline.stats.failed

    @property
    def fraction(self) -> float | None:
        """Of the input's bytes, or None if their number is unknown."""
        if not self._total_bytes:
            return None
        return min(1.0, self._pipeline.snapshot().bytes_done / self._total_bytes)

    def segments(self) -> list[str]:
        """What there is to say, the most important first."""
        stats, now = self._pipeline.stats, self._pipeline.snapshot()
        then, rows, taken = self._samples[0]
        seconds = max(stats.seconds - then, 0.001)
        rate = (self._done - rows) / seconds
        said = [f"{self._done:,} rows"]
        if self.fraction is not None and self._total_bytes:
            said.append(f"{self.fraction:.0%}")
            speed = (now.bytes_done - taken) / seconds
            if speed > 0 and self.fraction < 1:
                left_s = (self._total_bytes - now.bytes_done) / speed
                said.append(f"{duration(left_s)} left")
        said.append(f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s")
        if stats.failed:
            said.append(f"{stats.failed:,} failed")
        said.append(f"{now.at_server:,} in flight")
        if now.limit:
            said.append(f"limit {now.limit}")
        if stats.cached:
            said.append(f"{stats.cached:,} from cache")
        said.append(f"{short(stats.billed_prompt + stats.billed_completion)} tokens")
        return said

    def line(self) -> str:
        """All of it, for SIGUSR1."""
        return ", ".join(self.segments())


def summary(stats: Stats) -> list[str]:
    """What a run did, in two lines."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in stats.by_kind.most_common())
    failed = f", {stats.failed:,} failed ({kinds})" if stats.failed else ""
    unfinished = stats.rows - stats.answered - stats.failed
    left = f", {unfinished:,} unfinished" if unfinished else ""
    billed = stats.billed_prompt + stats.billed_completion
    saved = stats.saved_prompt + stats.saved_completion
    return [
        f"{stats.rows:,} rows: {stats.answered:,} answered ({stats.cached:,} from the cache){failed}{left}",
        f"{short(billed)} tokens billed ({short(stats.billed_prompt)} in, {short(stats.billed_completion)} out), "
        f"{short(saved)} saved by the cache; {duration(stats.seconds)}",
    ]


def duration(seconds: float) -> str:
    """Like 0:07, 12:30 or 3:05:00."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def short(number: int) -> str:
    """Like 950, 12.3k or 4.56M."""
    for limit, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= limit:
            return f"{number / unit:.3g}{name}"
    return str(number)


class Bar:
    """The bar on a terminal, drawn by a thread of its own: a stopped terminal stops nothing else."""

    def __init__(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.live import Live

        self._progress = progress
        self._console = Console(stderr=True, soft_wrap=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def show(self) -> None:
        """Draws it, from now on again and again."""
        self._live.start()

    def print_above(self, lines: bytes) -> None:
        """Writes whole lines above the bar, as they are."""
        text = lines.decode("utf-8", "replace").removesuffix("\n")
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        self._live.stop()

    def _draw(self) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        fraction = self._progress.fraction
        columns = self._console.width - 1
        grid = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = []
        if fraction is not None:
            grid.add_column(width=_BAR_COLUMNS)
            cells.append(ProgressBar(total=1.0, completed=fraction, width=_BAR_COLUMNS))
            columns -= _BAR_COLUMNS + 1
        grid.add_column(no_wrap=True)
        text = ""
        for segment in self._progress.segments():
            longer = f"{text} · {segment}" if text else segment
            if len(longer) > columns:
                break
            text = longer
        grid.add_row(*cells, text)
        return grid
