"""Which requests have come before in this run."""

import sqlite3

from llmfilter.errors import RunError

_SEEN_BYTES = 8  # of a key, that tell it from the others of an input


class Seen:
    """Which keys have come before: in memory, and beyond SQLite's 2 MB in a file that has no name.

    A kill leaves nothing behind. Of each key only the beginning is kept: to take two for one costs no more than a
    request that is not printed.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, key: bytes) -> bool:
        """Note a key; return whether it is new. Raise RunError where there is no room for it."""
        try:
            return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", [key[:_SEEN_BYTES]]).rowcount == 1
        except sqlite3.Error as error:
            raise RunError(
                f"cannot remember which requests were already printed ({error}): make room in $TMPDIR"
            ) from None
