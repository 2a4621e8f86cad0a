"""The command: argv and the standard streams, before anything is built; the exit status after it."""

import gc
import os
import signal
import stat
from argparse import Namespace
from collections.abc import Sequence

from llmfilter import ending
from llmfilter.errors import OUT_OF_MEMORY, UsageError
from llmfilter.options import parse
from llmfilter.session import STDERR, STDIN, STDOUT, run, say
from llmfilter.words import describe_bug

_FILES_BESIDE = 64  # descriptors beyond one for each request: streams, cache, loop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, unless it dies of a signal."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # nothing to tell yet
    try:
        check_streams()
        args = parse(argv)
        check_files(args.jobs)
        status = start(args)
    except UsageError as error:
        say(str(error))
        return ending.WRONG_USAGE
    except MemoryError:
        say(OUT_OF_MEMORY)
        return ending.STOPPED_EARLY
    except Exception as bug:
        say(describe_bug(bug))
        return ending.BUG
    if status > ending.SIGNALLED and status != ending.READER_GONE:
        from llmfilter.signals import die_of

        die_of(status - ending.SIGNALLED)
    return status


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
    """Raise the limit of open files as far as `jobs` connections need; UsageError if that is not allowed."""
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
    """Run the pipeline on an event loop; return the exit status."""
    # A row under way is a few dozen objects, which Python's 700 would have it look through again and
    # again; what it leaves behind in cycles is little. A quarter of a live run's time.
    gc.set_threshold(20_000, 20, 100)

    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(args))
