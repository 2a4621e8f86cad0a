"""Answers that were paid for, in LMDB: looked up by request, durable before their row is printed.

One thread commits whatever has piled up in one transaction (group commit), so that fsync never
stops the event loop and its cost is shared. Several processes may use one folder at once.
"""

import asyncio
import errno
import os
import threading
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import lmdb

from llmfilter.answers.checks import Answer
from llmfilter.api.completion import Completion
from llmfilter.cache.folder import VALUE_BYTES_MOST, cache_folder, open_folder
from llmfilter.cache.stored import pack
from llmfilter.errors import UsageError
from llmfilter.words import printable
from llmfilter.worker import Batcher

Item = tuple[bytes, bytes, "asyncio.Future[bool] | None"]  # who waits for it, and for those before it
_FOUND_BYTES_MOST = 1 << 20  # in one look-up
AGAIN_S = 5.0  # between trials of a cache that failed
_SLOW_S = 10.0  # a commit takes milliseconds
_STILL_S = 0.001  # at most: another process may be at its commit
_NAME_CHARS_MOST = 100  # of a folder's name, in a message
_FULL_BYTES = 1 << 16  # left on a disk: less than a commit may need


def open_cache(args: Namespace, environ: Mapping[str, str]) -> "NoCache":
    """Return the cache that was named, or the usual one; a dry run leaves no new folder behind."""
    if args.cache == "":
        raise UsageError("--cache: the folder's name is empty: give one, or --no-cache")
    if args.no_cache:
        if args.cache is not None:
            raise UsageError("--cache and --no-cache: give one of them")
        return NoCache()
    named = args.cache or environ.get("LLMFILTER_CACHE")
    try:
        folder = cache_folder(named, environ)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if (args.dry_run or args.to_batch) and not (folder / "data.mdb").exists():
            return NoCache()
        return Cache(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home to be found, or a loop of links
        shown = printable(named or "~/.cache/llmfilter", _NAME_CHARS_MOST)
        why = (isinstance(error, OSError) and error.strerror) or printable(str(error).rstrip("."))
        raise UsageError(
            f"the cache {shown} can't be opened ({why}): give another folder with --cache, or --no-cache"
        ) from None


class NoCache:
    """Remembers nothing (`--no-cache`). on_failure gets a message if a cache fails in mid-run."""

    on_failure: Callable[[str], None] = staticmethod(lambda message: None)
    folder: Path | None = None

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value under each key, or None; for the first keys only where values are large."""
        return [None] * len(keys)

    def put(self, key: bytes, completion: Completion, answer: Answer | None = None) -> Awaitable[bool]:
        """Return True once a completion is on the disk, or False; answer: found in it, if that is known."""
        return _known(True)

    def put_all(self, pairs: Sequence[tuple[bytes, bytes]]) -> Awaitable[bool]:
        """Return True once values under their keys are all on the disk, or False."""
        return _known(True)

    def close(self) -> None:
        """To be called when nothing waits to be stored."""


class Cache(NoCache):
    """An LMDB folder. Where it can't be written the run goes on without it, and tries it again every few seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self._loop = asyncio.get_running_loop()
        self._env: lmdb.Environment | None = open_folder(folder)
        self._inode = self._stat_inode()
        self._slow: asyncio.TimerHandle | None = None
        self._are_put = threading.Event()
        self._commits = Batcher(self._commit, self._committed, self._stand_still)
        self._fault: Exception | None = None  # why it could not be written the last time
        self._again_at = 0.0  # when to try it again

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As in NoCache; if the cache fails, nothing is found."""
        if not self._env:
            return [None] * len(keys)
        try:
            with self._env.begin(buffers=True) as transaction:
                views = [*map(transaction.get, keys)]
                if sum([len(view) for view in views if view is not None]) > _FOUND_BYTES_MOST:
                    views = first_views(views)
                return [None if view is None else view.tobytes() for view in views]
        except lmdb.Error as error:
            self._fail(error)
            return [None] * len(keys)

    def put(self, key: bytes, completion: Completion, answer: Answer | None = None) -> Awaitable[bool]:
        """As in NoCache."""
        return self.put_all([(key, pack(key, completion, answer))])

    def put_all(self, pairs: Sequence[tuple[bytes, bytes]]) -> Awaitable[bool]:
        """As in NoCache."""
        if not pairs:
            return _known(True)
        if self._fault and not self._may_try_again():
            return _known(False)
        stored = self._loop.create_future()
        *others, last = pairs
        self._commits.add([*[(*pair, None) for pair in others], (*last, stored)])
        return stored

    def _may_try_again(self) -> bool:
        """Open the folder anew, since LMDB gives one up that could not be written; return whether it can be used."""
        if self._loop.time() < self._again_at or not self._commits.idle:
            return False
        self._again_at = self._loop.time() + AGAIN_S
        if self._env:
            self._env.close()
        try:
            self._env = open_folder(self.folder)
        except (UsageError, OSError):
            self._env = None
            return False
        self._inode = self._stat_inode()
        return True

    def _commit(self, batch: list[Item]) -> None:
        if self._stat_inode() != self._inode:
            raise FileNotFoundError("the folder was removed or replaced")
        pairs = [(key, value) for key, value, _ in batch]
        assert self._env  # it was opened again before anything was handed over
        with self._env.begin(write=True) as transaction:
            transaction.cursor().putmulti(pairs)
            self._are_put.set()

    def _stand_still(self) -> None:
        """Lets the puts have the interpreter's lock, but does not wait for the disk.

        py-lmdb lets go of that lock for each single put and would have to win it back from the loop as
        often, which takes 20 times longer than the puts.
        """
        self._slow = self._loop.call_later(_SLOW_S, self._say_slow)
        self._are_put.wait(_STILL_S)

    def _stat_inode(self) -> int:
        try:
            return os.stat(self.folder / "data.mdb").st_ino
        except OSError:
            return 0

    def _say_slow(self) -> None:
        self.on_failure(
            f"the cache {self.folder} has taken {_SLOW_S:.0f} s to store answers: its disk is slow, "
            "or another process that uses it was stopped in mid-commit (jobs, fg)"
        )

    def _committed(self, batch: list[Item], error: Exception | None) -> None:
        self._are_put.clear()
        if self._slow:
            self._slow.cancel()
        if error:
            self._fail(error)
        elif self._fault:
            self._fault = None
            self.on_failure(f"the cache {self.folder} works again: answers are stored from now on")
        for _, _, stored in batch:
            if stored:
                stored.set_result(error is None)

    def _fail(self, error: Exception) -> None:
        if not self._fault:
            self.on_failure(
                f"the cache {self.folder} fails ({_cause(error, self.folder)}); this run goes on without it, and tries "
                f"it again every {AGAIN_S:.0f} s: make room, or give another folder with --cache"
            )
        self._fault = error
        self._again_at = self._loop.time() + AGAIN_S

    def close(self) -> None:
        """To be called when nothing waits to be stored."""
        if self._env:
            self._env.close()


async def _known(is_stored: bool) -> bool:
    return is_stored


def first_views(views: Sequence[memoryview | None]) -> list[memoryview | None]:
    """Return the first values, up to 1 MB.

    One whose damaged length may reach beyond the file is None: reading there kills the process.
    """
    first: list[memoryview | None] = []
    size = 0
    for view in views:
        is_sound = view is not None and len(view) <= VALUE_BYTES_MOST
        first.append(view if is_sound else None)
        size += len(view) if view is not None and is_sound else 0
        if size > _FOUND_BYTES_MOST:
            break
    return first


def _cause(error: Exception, folder: Path) -> str:
    """Return why a cache has failed; LMDB calls it an input/output error where a disk has taken half of a write."""
    with suppress(OSError):
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize < _FULL_BYTES:
            return os.strerror(errno.ENOSPC)
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
