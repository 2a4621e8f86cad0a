"""Where the final counters go (`--stats`): a new file whole or not at all, a stream without emptying it."""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from llmfilter.errors import UsageError
from llmfilter.output.writer import write_all
from llmfilter.words import printable

_CACHE_FILES = ("data.mdb", "lock.mdb")


class StatsFile:
    """A file that is written once, at the end; what would go wrong there shows at once, as UsageError.

    shown: what to call it in a message.
    own: the files that the run reads or writes otherwise, by what to call them: paths, or descriptors.
    """

    def __init__(self, path: str, own: Mapping[str, str | int]) -> None:
        self.shown = f"--stats {printable(path)}"
        if not path:
            raise UsageError("--stats: the file's name is empty")
        self._status = _status_of(path)
        # Links are followed, as by a shell's >; /dev/stdout may lead to no path.
        self._path = Path(path if self._is_stream else os.path.realpath(path))
        if self._path.name in _CACHE_FILES:
            raise UsageError(f"{self.shown}: this is a cache's file; give another one")
        try:
            if not self._is_stream:
                self._check_file(own)
            elif not os.access(path, os.W_OK):
                raise PermissionError(0, "Permission denied")
        except OSError as error:
            raise UsageError(f"{self.shown}: {error.strerror}") from None

    @property
    def _is_stream(self) -> bool:
        """Return whether it is a pipe, a terminal or another device; what has no status is a file to be made."""
        mode = self._status.st_mode if self._status else stat.S_IFREG
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))

    def _check_file(self, own: Mapping[str, str | int]) -> None:
        if self._status and stat.S_ISDIR(self._status.st_mode):
            raise IsADirectoryError(0, "Is a directory")
        for name, other in own.items():
            theirs = _status_of(other)
            if self._status and theirs and os.path.samestat(self._status, theirs):
                raise UsageError(f"{self.shown}: this is {name}, which would be lost: give another file")
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            os.stat(self._path.parent)
            raise PermissionError(0, "its folder can't be written")

    def write(self, text: bytes) -> None:
        """Write the counters; raise OSError."""
        if self._is_stream:
            # A named pipe that nobody reads is an error, and no reason to wait.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                write_all(descriptor, text)
            finally:
                os.close(descriptor)
            return
        made = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                if self._status:
                    os.fchmod(descriptor, stat.S_IMODE(self._status.st_mode))
                write_all(descriptor, text)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(made, self._path)
        except OSError:
            with suppress(OSError):
                os.unlink(made)
            raise


def _status_of(file: str | int | Path) -> os.stat_result | None:
    try:
        return os.stat(file)
    except OSError:
        return None
