"""One run and its user: signals, progress, the last words, the exit status."""

import gc
import os
import stat
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING

from llmfilter import ending
from llmfilter.words import counted, plain_line

if TYPE_CHECKING:
    from llmfilter.output.screen import Screen
    from llmfilter.output.stats_file import StatsFile
    from llmfilter.pipeline import Mode, Pipeline, Run
    from llmfilter.stats import Stats

STDIN, STDOUT, STDERR = 0, 1, 2


def say(message: str) -> None:
    """Say a plain line on stderr."""
    try:
        os.write(STDERR, plain_line(message))
    except OSError:
        pass  # nobody listens; the exit status tells


async def run(args: Namespace) -> int:
    """Build the mode from what was typed, run it, and say how it ended; return the exit status."""
    import asyncio

    from llmfilter.job import prepare
    from llmfilter.output.lines import Output
    from llmfilter.output.progress import Progress, summary
    from llmfilter.output.screen import make_screen
    from llmfilter.output.stats_file import StatsFile
    from llmfilter.output.writer import is_writable, write_all, write_alone, write_now
    from llmfilter.pipeline import Pipeline, Run
    from llmfilter.signals import Signals
    from llmfilter.stats import Stats

    stats_file = StatsFile(args.stats, own_files(args)) if args.stats is not None else None
    make_mode = await prepare(args, os.environ, STDIN)
    if os.isatty(STDIN):
        say("reading records from the terminal, one a line; Ctrl-D ends them")

    total_bytes = bytes_left(STDIN)  # before anything is read
    write = write_alone if os.path.samestat(os.fstat(STDOUT), os.fstat(STDERR)) else write_all
    screen = make_screen(args, os.environ, partial(write, STDERR))
    # Who shares stdout takes turns.
    stdout_now = None if write is write_alone else partial(write_now, STDOUT)
    end = ending.Ending()
    output = Output(partial(write, STDOUT), screen, args.keep_order, partial(stop_writing, end), stdout_now)
    run = Run(output, Stats(price=args.price), end, asyncio.TaskGroup())
    mode = make_mode(run)
    pipeline = Pipeline(mode, STDIN, run)
    progress = Progress(run.stats, pipeline.snapshot, total_bytes, screen)

    def end_at_once() -> None:
        write_stats(stats_file, run.stats)
        if is_writable(STDERR):
            screen.say_last(*last_words(pipeline, mode, run)[:1])

    signals = Signals(run, pipeline.snapshot, progress, end_at_once)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: pipeline.crash(context))
    gc.freeze()  # what was made so far stays to the end, and is not looked through any more
    try:
        await pipeline.run()
    finally:
        progress.close()
    write_stats(stats_file, run.stats)
    await reader_ends(screen, run.ending)
    screen.say_last(*last_words(pipeline, mode, run))
    if screen.is_shown and not mode.report():
        screen.say(*summary(run.stats))
    return signals.status or status_of(run, is_whole=pipeline.snapshot().first_unfinished is None)


async def reader_ends(screen: "Screen", end: ending.Ending) -> None:
    """Return when the program has ended that shows our stdout on the terminal (less, jq): then the last words are read.

    A run that ends early waits for nobody.
    """
    import asyncio

    reader = None if end.has_begun else screen.reader()
    if reader is None:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)  # it sees the end of what we print
    os.close(null)
    has_ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(reader, has_ended.set)
    waiting = [asyncio.ensure_future(has_ended.wait()), asyncio.ensure_future(end.wait())]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()
    asyncio.get_running_loop().remove_reader(reader)
    os.close(reader)


def status_of(run: "Run", is_whole: bool) -> int:
    """Return the exit status of a run that no signal has ended; is_whole: each row has its line."""
    if stop := run.ending.stop:
        return stop.whole_status if is_whole else stop.status
    return ending.SOME_FAILED if run.stats.failed else ending.ALL_ANSWERED


def bytes_left(fd: int) -> int | None:
    """Return how much there is to read, if the descriptor is a file."""
    status = os.fstat(fd)
    return status.st_size - os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None


def stop_writing(end: ending.Ending, error: Exception) -> None:
    """End a run whose output can't be written."""
    if isinstance(error, BrokenPipeError):
        end.begin(ending.READER_GONE, None)  # it has seen enough
    else:
        why = error.strerror if isinstance(error, OSError) else error
        end.begin(ending.STOPPED_EARLY, f"the output can't be written: {why}")


def last_words(pipeline: "Pipeline", mode: "Mode", run: "Run") -> list[str]:
    """Return what there is to say at the end, beside the summary."""
    stop, lines = run.ending.stop, []
    if stop and stop.reason:
        lines.append(describe_stop(stop, pipeline, mode, run.stats))
    if run.stats.unstored:
        lost = counted(run.stats.unstored, "answer")
        lines.append(f"{lost} could not be stored in the cache: they will be paid for again")
    if not run.output.failure:  # else it did not all come out
        lines += mode.report()
    return lines


def describe_stop(stop: ending.Stop, pipeline: "Pipeline", mode: "Mode", stats: "Stats") -> str:
    """Return how far a run came that ended early, and how to go on."""
    if stop.status == ending.WRONG_USAGE:
        return str(stop.reason)
    line = pipeline.snapshot().first_unfinished
    first = "every line is done" if line is None else f"the first unfinished line is {line}"
    done = f"{counted(stats.answered, 'row')} answered, {stats.failed:,} failed"
    resumes = line is not None and mode.resumes and stats.answered
    way_on = "; the same command on the same input goes on from there" if resumes else ""
    return f"{stop.reason}; {first} ({done}){way_on}"


def own_files(args: Namespace) -> dict[str, str | int]:
    """Return the files that a run reads or writes, by what to call them: paths, or descriptors."""
    files: dict[str, str | int] = {"stdin": STDIN, "the file of stdout": STDOUT, "the file of stderr": STDERR}
    named = {"the file of -p": args.prompt, "the file of --schema": args.schema}
    if args.system and args.system.startswith("@"):
        named["the file of -s"] = args.system[1:]
    return files | {name: path for name, path in named.items() if path}


def write_stats(file: "StatsFile | None", stats: "Stats") -> None:
    """Write the counters as one JSON object; a failure is said, since the rows are out already."""
    import json

    if not file:
        return
    try:
        file.write(json.dumps(stats.as_dict()).encode() + b"\n")
    except OSError as error:
        say(f"{file.shown}: {error.strerror}")
