"""Which requests have come before in this run."""

import os
import tempfile
from pathlib import Path

import lmdb

from llmfilter.cache.folder import open_largest
from llmfilter.errors import RunError, UsageError

_SEEN_BYTES = 8  # of a key, that tell it from the others of an input
_SEEN_TOGETHER = 500  # in one transaction, which holds up to a page for each


class Seen:
    """Which keys have come before, in a file that has no name: memory does not grow, and a kill leaves nothing behind.

    Of each key only the beginning: to take two for one costs no more than a request that is not printed.
    Raises UsageError where there is no room for a file.
    """

    def __init__(self, folder: Path | None) -> None:
        try:
            self._env = _open_unnamed(folder)
        except (OSError, lmdb.Error) as error:
            raise UsageError(_no_room(error)) from None
        self._added = 0
        self._transaction = self._env.begin(write=True)

    def add(self, key: bytes) -> bool:
        """Note a key; return whether it is new. Raise RunError where there is no room for it."""
        try:
            if self._added == _SEEN_TOGETHER:
                self._transaction.commit()
                self._transaction, self._added = self._env.begin(write=True), 0
            self._added += 1
            return bool(self._transaction.put(key[:_SEEN_BYTES], b"", overwrite=False))
        except lmdb.Error as error:
            raise RunError(_no_room(error)) from None


def _open_unnamed(folder: Path | None) -> lmdb.Environment:
    try:
        descriptor, name = tempfile.mkstemp(dir=folder)
    except OSError:  # a cache's files may be ours to write where its folder isn't
        descriptor, name = tempfile.mkstemp()
    os.close(descriptor)
    try:
        return open_largest(Path(name), subdir=False, lock=False, sync=False)
    finally:
        os.unlink(name)


def _no_room(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else error
    return f"which requests are equal can't be noted ({why}): make room in the cache's folder, or in $TMPDIR"
