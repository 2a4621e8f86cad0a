"""What signals do to a run: the first ends it with what is in flight finished, a later one at once.

One event may come as several signals within milliseconds: a terminal that closes sends SIGHUP twice (the
kernel and the shell), GNU timeout sends SIGTERM to its child and to the child's group. What was ignored at
the start (nohup's SIGHUP, a background job's SIGINT) stays ignored.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from llmfilter.ending import SIGNALLED
from llmfilter.output.progress import Progress
from llmfilter.pipeline import Run
from llmfilter.stats import Snapshot
from llmfilter.words import counted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_EVENT_S = 1.0


class Signals:
    """Handles the signals of a run on its loop.

    look: tells how far the run is.
    end_at_once: says the last words of a run that is not waited for.
    status: the exit status that a signal wants, or 0.
    """

    def __init__(
        self,
        run: Run,
        look: Callable[[], Snapshot],
        progress: Progress,
        end_at_once: Callable[[], None],
    ) -> None:
        self._run = run
        self._look = look
        self._progress = progress
        self._end_at_once = end_at_once
        self._loop = asyncio.get_running_loop()
        self._since_s = 0.0
        self.status = 0
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._stop, number)
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            self._loop.add_signal_handler(signal.SIGTSTP, self._pause)
        self._loop.add_signal_handler(signal.SIGUSR1, self._tell)

    def _stop(self, number: signal.Signals) -> None:
        """Let the first signal finish what is in flight, and a later one end the program."""
        if self.status:
            is_same_event = self._loop.time() - self._since_s < SAME_EVENT_S
            if not is_same_event and number != signal.SIGHUP:
                self._progress.close()
                self._end_at_once()
                die_of(number)
            return
        self.status, self._since_s = SIGNALLED + number, self._loop.time()
        self._run.ending.begin(self.status, f"ended by {number.name}")
        if waits_for := describe_wait(self._look()):
            self._run.output.say(f"{number.name}: {waits_for}; a second signal stops at once")

    def _pause(self) -> None:
        """Stop as Ctrl-Z wants it, with the bar out of the way."""
        self._progress.close()
        self._loop.remove_signal_handler(signal.SIGTSTP)
        signal.raise_signal(signal.SIGTSTP)
        self._loop.add_signal_handler(signal.SIGTSTP, self._pause)
        self._progress.resume()

    def _tell(self) -> None:
        self._run.output.say(self._progress.line())


def describe_wait(now: Snapshot) -> str | None:
    """Return what a run waits for that has begun to end; None if for nothing."""
    if now.under_way.at_server:
        return f"finishing {counted(now.under_way.at_server, 'request')}, already paid for"
    if now.under_way.requests:
        return "storing what was answered"
    return "waiting for the reader of the output" if now.is_held else None


def die_of(number: int) -> NoReturn:
    """End by a signal, as a shell's loop has to see it: $? is 128 + number then."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(SIGNALLED + number)  # where the signal can't be delivered
