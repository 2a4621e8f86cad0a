"""How far a run is: a bar while it runs on a terminal, a line when asked, two lines at the end."""

import asyncio
from collections import deque
from collections.abc import Callable

from llmfilter.output.bar import Bar, meter
from llmfilter.output.terminal import CLEAR, Terminal
from llmfilter.output.writer import Write
from llmfilter.stats import Snapshot, Stats
from llmfilter.words import counted, duration, money, short
from llmfilter.worker import start_thread

START_S = 0.5  # a short run needs no bar
SAMPLE_S = 1.0
WAITS_S = 1.0  # a shorter want of answers is nothing to look at
WINDOW_S = 10.0  # over which the speed is measured: what came from the cache is soon forgotten
_METER_COLUMNS = 20


class Progress:
    """Says how far a run is.

    look: tells it.
    total_bytes: of the input, if it is a file.
    write: to stderr.
    terminal: for a bar, None for none.
    """

    def __init__(
        self,
        stats: Stats,
        look: Callable[[], Snapshot],
        total_bytes: int | None,
        write: Write,
        terminal: Terminal | None,
    ) -> None:
        self._write = write
        self._stats = stats
        self._look = look
        self._total_bytes = total_bytes
        self._terminal = terminal
        self._bar: Bar | None = None
        if terminal:
            terminal.has_bars = True
        self._start()

    def _start(self) -> None:
        self._samples: deque[tuple[float, int, float]] = deque([self._sampled()])
        self._timer = asyncio.get_running_loop().call_later(START_S, self._sample)

    def write(self, lines: bytes) -> None:
        """Write whole lines to stderr: on its terminal above the bar, also above that of another llmfilter."""
        if not (self._terminal and self._terminal.is_stderr):
            self._write(lines)
        elif self._bar:
            self._bar.write_above(lines, self._write)
        else:
            self._write(CLEAR + lines if self._terminal.is_ours else lines)

    def write_stdout(self, lines: bytes, write: Write) -> None:
        """Write answers; what reads them from a pipe may print something of its own where the bar is."""
        bar = self._bar  # the loop may take it away meanwhile
        if bar:
            bar.step_aside()
        write(lines)

    def tell(self, message: str, terminal: Terminal) -> None:
        """Say a line on a terminal that is not stderr, without waiting for one that is stopped."""
        start_thread(lambda: terminal.say(message))

    def close(self) -> None:
        """Take the bar away."""
        self._timer.cancel()
        if self._bar:
            self._bar.close()
            self._bar = None

    def resume(self) -> None:
        """Begin again after `close`: the time between counts for no speed."""
        self._start()

    def _sampled(self) -> tuple[float, int, float]:
        return self._stats.seconds, self._done, self._look().bytes_done

    def _sample(self) -> None:
        if self._terminal and not self._bar:
            self._bar = Bar(self._terminal, self._draw)
        self._samples.append(self._sampled())
        while self._samples[0][0] < self._samples[-1][0] - WINDOW_S:
            self._samples.popleft()
        self._timer = asyncio.get_running_loop().call_later(SAMPLE_S, self._sample)

    @property
    def _done(self) -> int:
        return self._stats.answered + self._stats.failed

    @property
    def fraction(self) -> float | None:
        """Return how much of the input is done; None if its size is unknown, or no more of it is read."""
        if not self._total_bytes or self._look().is_ending:
            return None
        return min(1.0, self._look().bytes_done / self._total_bytes)

    def segments(self) -> list[str]:
        """Return what there is to say, the most important first."""
        return self._left() if self._look().is_ending else self._running()

    def _left(self) -> list[str]:
        now = self._look()
        doing = (
            f"finishing {counted(now.under_way.at_server, 'request')}"
            if now.under_way.at_server
            else "writing what is left"
        )
        return [doing, counted(self._done, "row"), self._spent()]

    def _spent(self) -> str:
        stats = self._stats
        return f"cost {money(stats.price.cost(stats.billed))}" if stats.price else f"{short(stats.billed.total)} tokens"

    def _running(self) -> list[str]:
        stats, now = self._stats, self._look()
        then, rows, taken = self._samples[0]
        seconds = max(stats.seconds - then, 0.001)
        rate = (self._done - rows) / seconds
        said = [counted(self._done, "row")]
        if self.fraction is not None and self._total_bytes:
            said.append(f"{self.fraction:.0%}")
            speed = (now.bytes_done - taken) / seconds
            if speed > 0 and self.fraction < 1:
                left_s = (self._total_bytes - now.bytes_done) / speed
                said.append(f"{duration(left_s)} left")
        said.append(f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s")
        if stats.failed:
            said.append(f"{stats.failed:,} failed")
        if stats.price:
            said.append(self._spent())
        said.append(
            f"{now.under_way.at_server:,} in flight" if now.under_way.waits_s < WAITS_S else "waiting for the server"
        )
        if now.under_way.limit:
            said.append(f"limit {now.under_way.limit}")
        if stats.cached:
            said.append(f"{stats.cached:,} from cache")
        if not stats.price:
            said.append(self._spent())
        return said

    def line(self) -> str:
        """Return all of it, for SIGUSR1."""
        return ", ".join(self.segments())

    def _draw(self, terminal: Terminal) -> str:
        columns, drawn = terminal.columns, ""
        if self.fraction is not None:
            drawn = meter(self.fraction, min(_METER_COLUMNS, columns // 4), terminal.is_painted) + " "
            columns -= min(_METER_COLUMNS, columns // 4) + 1
        text = ""
        for segment in self.segments():
            longer = f"{text} · {segment}" if text else segment
            if len(longer) > columns:
                break
            text = longer
        return drawn + text


def summary(stats: Stats) -> list[str]:
    """Return what a run did in two lines or three, its costs first."""
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in stats.by_kind.most_common())
    failed = f", {stats.failed:,} failed ({kinds})" if stats.failed else ""
    unfinished = stats.rows - stats.answered - stats.failed
    left = f", {unfinished:,} left" if unfinished else ""
    billed, saved, price = stats.billed, stats.saved, stats.price
    costs = [f"cost {money(price.cost(billed))}, saved {money(price.cost(saved))}"] if price else []
    if billed.cached:
        costs.append(f"{billed.cached / billed.prompt:.0%} of the prompt tokens were in the server's cache")
    return [
        *(["; ".join(costs)] if costs else []),
        f"{short(billed.total)} tokens billed ({short(billed.prompt)} in, {short(billed.completion)} out), "
        f"{short(saved.total)} saved by the cache",
        f"{counted(stats.rows, 'row')} in {duration(stats.seconds)}: "
        f"{stats.answered:,} answered ({stats.cached:,} from the cache){failed}{left}",
    ]
