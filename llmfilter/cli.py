"""The command: argv, environment, standard streams, signals and exit status; builds the rest."""

import gc
import os
import signal
import stat
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from llmfilter.errors import OUT_OF_MEMORY, UsageError, describe_bug
from llmfilter.figures import counted
from llmfilter.options import parse

if TYPE_CHECKING:
    from llmfilter.pipeline import Pipeline
    from llmfilter.progress import Progress
    from llmfilter.stats import Stats
    from llmfilter.terminal import Terminal

STDIN, STDOUT, STDERR = 0, 1, 2
_FILES_BESIDE = 64  # descriptors beyond one for each request: streams, cache, loop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, unless it dies of a signal."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to save yet: end without a traceback
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # nothing to tell yet
    try:
        check_streams()
        args = parse(argv)
        check_files(args.jobs)
        status = start(args)
    except UsageError as error:
        say(str(error))
        return 2
    except MemoryError:
        say(OUT_OF_MEMORY)
        return 3
    except Exception as bug:
        say(describe_bug(bug))
        return 70
    if status - 128 in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        die_of(status - 128)
    return status


def say(message: str, beside: "Terminal | None" = None) -> None:
    """Say a plain line on stderr, and on a terminal beside it."""
    if beside:
        beside.say(message)
    try:
        os.write(STDERR, f"llmfilter: {message}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody listens; the exit status tells


def check_streams() -> None:
    """Before anything is opened, which would take a closed descriptor's place; raises UsageError."""
    streams = {}
    for fd in (STDIN, STDOUT, STDERR):
        try:
            streams[fd] = os.fstat(fd)
        except OSError:
            # The null device keeps the number taken. Without a stderr the run is still of use.
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
    if STDIN not in streams:
        raise UsageError("stdin is closed: give records, like < data.jsonl")
    if STDOUT not in streams:
        raise UsageError("stdout is closed: give it somewhere to go, like > out.jsonl")
    if stat.S_ISREG(streams[STDIN].st_mode) and os.path.samestat(streams[STDIN], streams[STDOUT]):
        raise UsageError(
            "stdin and stdout are the same file, which > empties before it can be read: write to another one"
        )


def check_files(jobs: int) -> None:
    """Raises the limit of open files as far as `jobs` connections need; UsageError if that is not allowed."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = jobs + _FILES_BESIDE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = hard - _FILES_BESIDE
        instead = f", or give -j {most}" if most > 0 else ""
        raise UsageError(f"-j {jobs} needs {needed} open files, {hard} are allowed: raise ulimit -n{instead}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(args: Namespace) -> int:
    """Runs the pipeline on an event loop; returns the exit status."""
    # A row under way is a few dozen objects, which Python's 700 would have it look through again and
    # again; what it leaves behind in cycles is little. A quarter of a live run's time.
    gc.set_threshold(20_000, 20, 100)

    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(args))


async def run(args: Namespace) -> int:
    """Builds the job from what was typed, runs it, and says how it ended; returns the exit status."""
    import asyncio

    from llmfilter.job import make_job
    from llmfilter.load import Load
    from llmfilter.output import Output, error_line, write_all, write_alone
    from llmfilter.pipeline import Pipeline
    from llmfilter.progress import Progress, summary
    from llmfilter.stats import Stats
    from llmfilter.terminal import find_terminal, short_line

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
    """The first signal drains the pipeline, the second ends the program at once; SIGUSR1 asks how far it is.

    What was ignored at the start (nohup's SIGHUP, a background job's SIGINT) stays ignored.
    """
    import asyncio

    from llmfilter.output import is_writable
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
    """Writes the counters as one JSON object; a failure is said, since the rows are out already."""
    import json

    try:
        with open(path, "w") as file:
            file.write(json.dumps(stats.as_dict()) + "\n")
    except OSError as error:
        say(f"--stats {path}: {error.strerror}")
