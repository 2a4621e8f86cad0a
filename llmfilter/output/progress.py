"""How far a run is: a bar while it runs on a terminal, a line when asked, a few lines at the end."""

import asyncio
from collections import deque
from collections.abc import Callable

from llmfilter.output.screen import Screen
from llmfilter.stats import Snapshot, Stats
from llmfilter.words import counted, duration, money, short

START_S = 0.5  # a short run needs no bar; of several in one pipe the first one has it
REFRESH_S = 0.25
SAMPLE_S = 1.0
WAITS_S = 1.0  # a shorter want of answers is nothing to look at
WINDOW_S = 10.0  # over which the speed is measured: what came from the cache is soon forgotten
_METER_COLUMNS = 20
_PAINTED = "\x1b[32m{}\x1b[90m{}\x1b[m"


class Progress:
    """Says how far a run is.

    look: tells it.
    total_bytes: of the input, if it is a file.
    screen: where a bar may be.
    """

    def __init__(self, stats: Stats, look: Callable[[], Snapshot], total_bytes: int | None, screen: Screen) -> None:
        self._stats = stats
        self._look = look
        self._total_bytes = total_bytes
        self._screen = screen
        self.resume()

    def close(self) -> None:
        """Take the bar away."""
        self._timer.cancel()
        self._screen.close()

    def resume(self) -> None:
        """Begin, also again after `close`: the time between counts for no speed."""
        self._samples: deque[tuple[float, int, float]] = deque([self._sampled(self._look())])
        self._timer = asyncio.get_running_loop().call_later(START_S + REFRESH_S * self._screen.place, self._tick)

    def _sampled(self, now: Snapshot) -> tuple[float, int, float]:
        return self._stats.seconds, self._done, now.bytes_done

    def _tick(self) -> None:
        now, has_bar = self._look(), self._screen.has_bar()
        if self._stats.seconds - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append(self._sampled(now))
        while self._samples[0][0] < self._samples[-1][0] - WINDOW_S:
            self._samples.popleft()
        if has_bar:
            self._screen.show(self._draw(now))
        self._timer = asyncio.get_running_loop().call_later(REFRESH_S if has_bar else SAMPLE_S, self._tick)

    @property
    def _done(self) -> int:
        return self._stats.answered + self._stats.failed

    def _fraction(self, now: Snapshot) -> float | None:
        """Return how much of the input is done; None if its size is unknown, or no more of it is read."""
        if not self._total_bytes or now.is_ending:
            return None
        return min(1.0, now.bytes_done / self._total_bytes)

    def segments(self, now: Snapshot) -> list[str]:
        """Return what there is to say, the most important first."""
        return self._left(now) if now.is_ending else self._running(now)

    def _left(self, now: Snapshot) -> list[str]:
        at_server = now.under_way.at_server
        doing = f"finishing {counted(at_server, 'request')}" if at_server else "writing the last lines"
        return [doing, counted(self._done, "row"), self._spent()]

    def _spent(self) -> str:
        stats = self._stats
        return f"cost {money(stats.price.cost(stats.billed))}" if stats.price else f"{short(stats.billed.total)} tokens"

    def _running(self, now: Snapshot) -> list[str]:
        stats, is_waiting = self._stats, now.under_way.waits_s >= WAITS_S  # then the speed tells nothing
        then, rows, taken = self._samples[0]
        seconds = max(stats.seconds - then, 0.001)
        rate = (self._done - rows) / seconds
        said = [counted(self._done, "row")]
        if is_waiting:
            said += [*self._ahead(now, 0), "waiting for the server"]
        else:
            said += self._ahead(now, (now.bytes_done - taken) / seconds)
        if stats.price:
            said.append(self._spent())
        if stats.failed:
            said.append(f"{stats.failed:,} failed")
        if not is_waiting:
            said.append(f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s")
            said.append(f"{now.under_way.at_server:,} in flight")
        if now.under_way.limit:
            said.append(f"limit {now.under_way.limit}")
        if stats.cached:
            said.append(f"{stats.cached:,} from cache")
        if not stats.price:
            said.append(self._spent())
        return said

    def _ahead(self, now: Snapshot, bytes_per_s: float) -> list[str]:
        """Return which share of the input is done, and how long the rest takes; nothing where its size is unknown."""
        fraction = self._fraction(now)
        if fraction is None or not self._total_bytes:
            return []
        left = [f"{duration((self._total_bytes - now.bytes_done) / bytes_per_s)} left"] if bytes_per_s > 0 else []
        return [f"{fraction:.0%}", *(left if fraction < 1 else [])]

    def line(self) -> str:
        """Return all of it, for SIGUSR1."""
        return ", ".join(self.segments(self._look()))

    def _draw(self, now: Snapshot) -> str:
        columns, drawn, fraction = self._screen.columns, "", self._fraction(now)
        if fraction is not None:
            wide = min(_METER_COLUMNS, columns // 5)
            drawn = meter(fraction, wide, self._screen.is_painted) + " "
            columns -= wide + 1
        text = ""
        for segment in self.segments(now):
            longer = f"{text} · {segment}" if text else segment
            if len(longer) > columns:
                break
            text = longer
        return drawn + text


def meter(fraction: float, columns: int, is_painted: bool) -> str:
    """Return a bar of so many columns, of which a fraction is filled."""
    filled = round(fraction * columns)
    if is_painted:
        return _PAINTED.format("━" * filled, "━" * (columns - filled))
    return "━" * filled + " " * (columns - filled)


def summary(stats: Stats) -> list[str]:
    """Return what a run did in two lines or three, its costs first."""
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in stats.by_kind.most_common())
    failed = f", {stats.failed:,} failed ({kinds})" if stats.failed else ""
    done = stats.answered + stats.failed
    left = "; the rest is unread" if stats.rows > done else ""  # of which some was read ahead, that nobody knows of
    billed, saved, price = stats.billed, stats.saved, stats.price
    costs = [f"cost {money(price.cost(billed))}, saved {money(price.cost(saved))}"] if price else []
    if billed.cached:
        costs.append(f"{billed.cached / billed.prompt:.0%} of prompt tokens in the server's cache")
    return [
        *(["; ".join(costs)] if costs else []),
        f"{short(billed.total)} tokens billed ({short(billed.prompt)} in, {short(billed.completion)} out), "
        f"{short(saved.total)} saved by the cache",
        f"{counted(done, 'row')} in {duration(stats.seconds)}: "
        f"{stats.answered:,} answered ({stats.cached:,} from the cache){failed}{left}",
    ]
