"""The other programs of our job, as /proc tells of them: which of them show the user something of their own.

The programs of a pipe share the process group that the shell has given them.
"""

import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def neighbours() -> list[int] | None:
    """Return the processes of our group that we don't descend from, in the order of a pipe; None without /proc."""
    parents, members, above = {}, [], os.getpid()
    try:
        names = os.listdir("/proc")
    except OSError:
        return None
    for pid in sorted(int(name) for name in names if name.isdigit()):
        try:
            # proc(5): pid (comm) state ppid pgrp …; the name may hold anything.
            _, parent, group, *_ = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (OSError, ValueError):  # it has just ended
            continue
        parents[pid] = int(parent)
        if int(group) == os.getpgrp():
            members.append(pid)
    while above in parents:  # a script that waits for us prints nothing meanwhile
        members = [pid for pid in members if pid != above]
        above = parents.pop(above)
    return members


def writes_on(pid: int, device: int) -> bool:
    """Return whether a process has a terminal open to show something on it: as its stdout, or as a file (less, fzf)."""
    files = [(fd, status) for fd, status in _files(pid) if fd not in (_STDIN, _STDERR)]
    if is_llmfilter(pid):  # its bar makes way for ours
        files = [(fd, status) for fd, status in files if fd == _STDOUT]
    return any(stat.S_ISCHR(status.st_mode) and status.st_rdev in (device, _CONTROLLING) for _, status in files)


_CONTROLLING = os.makedev(5, 0)  # /dev/tty: admin-guide/devices.txt


def is_llmfilter(pid: int) -> bool:
    """Return whether a process runs this program."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:4]
    except OSError:
        return False
    return b"llmfilter" in [word.rpartition(b"/")[2] for word in words]


def reader_of(fd: int, device: int) -> int | None:
    """Return the process that shows on a terminal what goes into our pipe, itself or behind others; else None."""
    pids = neighbours() or []
    pipe = os.fstat(fd)
    for _ in pids:
        is_pipe = stat.S_ISFIFO(pipe.st_mode)
        reader = next((pid for pid in pids if is_pipe and _is_file(pid, _STDIN, pipe)), None)
        if reader is None:
            return None
        if writes_on(reader, device):
            return reader
        files = dict(_files(reader))
        if _STDOUT not in files:
            return None
        pipe = files[_STDOUT]
    return None


def open_process(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process ends; None if it has ended."""
    try:
        process = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
    if select.select([process], [], [], 0)[0]:
        os.close(process)
        return None
    return process


def _is_file(pid: int, fd: int, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), status)
    except OSError:
        return False


def _files(pid: int) -> Iterator[tuple[int, os.stat_result]]:
    """Yield the files that a process has open; nothing where that may not be known."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield int(name), os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:  # closed meanwhile
            continue
