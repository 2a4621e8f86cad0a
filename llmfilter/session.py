"""What every mode shares with its user: progress, signals, the last words, the exit status."""

import gc
import os
import signal
import stat
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from llmfilter.words import counted

if TYPE_CHECKING:
    from llmfilter.output.progress import Progress
    from llmfilter.output.terminal import Terminal
    from llmfilter.pipeline import Pipeline
    from llmfilter.stats import Stats


STDIN, STDOUT, STDERR = 0, 1, 2


def say(message: str, beside: "Terminal | None" = None) -> None:
    """Say a plain line on stderr, and on a terminal beside it."""
    if beside:
        beside.say(message)
    try:
        os.write(STDERR, f"llmfilter: {message}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody listens; the exit status tells


async def run(args: Namespace) -> int:
    """Build the job from what was typed, run it, and say how it ended; return the exit status."""
    import asyncio

    from llmfilter.job import make_job
    from llmfilter.modes.from_batch import Load
    from llmfilter.output.error_lines import error_line, short_line
    from llmfilter.output.lines import Output
    from llmfilter.output.progress import Progress, summary
    from llmfilter.output.terminal import find_terminal
    from llmfilter.output.writer import write_all, write_alone
    from llmfilter.pipeline import Pipeline
    from llmfilter.stats import Stats

    stats = Stats()
    job = await make_job(args, os.environ, STDIN, stats)
    if os.isatty(STDIN):
        say("reading records from the terminal, one a line; Ctrl-D ends them")

    def write_stdout(lines: bytes) -> None:
        progress.write_stdout(lines, partial(write, STDOUT))

    def write_stderr(lines: bytes) -> None:
        progress.write(lines)

    total_bytes = bytes_left(STDIN)  # before anything is read
    write = write_alone if os.path.samestat(os.fstat(STDOUT), os.fstat(STDERR)) else write_all
    terminal = find_terminal(STDERR, is_painted="NO_COLOR" not in os.environ)
    describe = partial(short_line, terminal) if terminal and terminal.is_stderr else error_line
    is_pipe = stat.S_ISFIFO(os.fstat(STDOUT).st_mode)
    output = Output(write_stdout if is_pipe else partial(write, STDOUT), write_stderr, job.keep_order, describe)
    pipeline = (Load if args.from_batch else Pipeline)(job, STDIN, output, stats)
    shown_on = None if args.quiet or os.environ.get("TERM", "dumb") == "dumb" else terminal
    has_bar = not (os.isatty(STDOUT) or args.dry_run or args.to_batch)
    progress = Progress(pipeline, total_bytes, partial(write, STDERR), shown_on if has_bar else None)
    # Where plain lines are seen that stderr takes elsewhere.
    beside = shown_on if shown_on and not shown_on.is_stderr else None
    catch_signals(pipeline, progress, beside, args.stats)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: pipeline.crash(context))
    gc.freeze()  # what was made so far stays to the end, and is not looked through any more
    try:
        await pipeline.run()
    finally:
        progress.close()
    if args.stats is not None:
        write_stats(args.stats, stats)
    for line in ending(pipeline):
        say(line, beside)
    if shown_on and not pipeline.report():
        shown_on.say(*summary(stats))
    return pipeline.stopped.status if pipeline.stopped else int(stats.failed > 0)


def bytes_left(fd: int) -> int | None:
    """How much there is to read, if the descriptor is a file."""
    status = os.fstat(fd)
    return status.st_size - os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None


def ending(pipeline: "Pipeline") -> list[str]:
    """Return what there is to say at the end, beside the summary."""
    stats, stopped = pipeline.stats, pipeline.stopped
    lines = [describe_stop(pipeline)] if stopped and stopped.reason else []
    if stats.unstored:
        lost = counted(stats.unstored, "answer")
        lines.append(f"{lost} could not be stored in the cache: they will be paid for again")
    if not pipeline.output.failure:  # else it did not all come out
        lines += pipeline.report()
    return lines


def catch_signals(
    pipeline: "Pipeline", progress: "Progress", beside: "Terminal | None", stats_path: str | None
) -> None:
    """Let the first signal drain the pipeline, the second end the program at once; SIGUSR1 asks how far it is.

    What was ignored at the start (nohup's SIGHUP, a background job's SIGINT) stays ignored.
    """
    import asyncio

    from llmfilter.output.writer import is_writable
    from llmfilter.pipeline import Stop

    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if seen:
            progress.close()
            if stats_path is not None:
                write_stats(stats_path, pipeline.stats)
            if is_writable(STDERR):
                say(describe_stop(pipeline), beside)
            die_of(number)
        seen.append(number)
        pipeline.stop(Stop(128 + number, f"ended by {number.name}"))
        now = pipeline.snapshot()
        if now.at_server:
            waits_for = f"finishing {counted(now.at_server, 'request')}, already paid for"
        elif now.held:
            waits_for = "waiting for the reader of the output"
        else:
            return
        message = f"{number.name}: {waits_for}; once more stops at once"
        pipeline.output.say(message)
        if beside:
            progress.tell(message, beside)

    def pause() -> None:
        """Stop as Ctrl-Z wants it, with the bar out of the way."""
        progress.close()
        loop.remove_signal_handler(signal.SIGTSTP)
        signal.raise_signal(signal.SIGTSTP)
        loop.add_signal_handler(signal.SIGTSTP, pause)
        progress.resume()

    def tell() -> None:
        pipeline.output.say(progress.line())

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGTSTP, pause)
    loop.add_signal_handler(signal.SIGUSR1, tell)


def describe_stop(pipeline: "Pipeline") -> str:
    """Return how far a run came that ended early, and how to go on."""
    stats, line = pipeline.stats, pipeline.snapshot().first_unfinished
    reason = pipeline.stopped.reason if pipeline.stopped else None
    done = f"{counted(stats.answered, 'row')} answered, {stats.failed} failed"
    if line is None:
        return f"{reason}; every row has its line: {done}"
    way_on = ": the same command on the same input goes on from there" if pipeline.resumes else ""
    return f"{reason}; stopped at line {line}, the first that is left ({done}){way_on}"


def die_of(number: int) -> NoReturn:
    """End by a signal, as a shell's loop has to see it: $? is 128 + number then."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # where the signal can't be delivered


def write_stats(path: str, stats: "Stats") -> None:
    """Write the counters as one JSON object; a failure is said, since the rows are out already."""
    import json

    try:
        with open(path, "w") as file:
            file.write(json.dumps(stats.as_dict()) + "\n")
    except OSError as error:
        say(f"--stats {path}: {error.strerror}")
