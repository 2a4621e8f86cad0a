"""What a run prints that sends nothing: request bodies (`-n`), or the lines of a Batch API's file (`--to-batch`)."""

from typing import Protocol

from llmfilter.cache import Seen
from llmfilter.errors import RowError
from llmfilter.stats import Stats

_LINE = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'


class Preview(Protocol):
    """Prints something for each request instead of sending it."""

    def line(self, key: bytes, body: bytes, found: bytes | RowError | None) -> bytes:
        """Return what to print for a request, with its newline, or nothing.

        found: the line that the cache would answer it with, or what is wrong with the answer there.
        """

    def report(self, stats: Stats) -> list[str]:
        """Return what there is to say at the end."""


class DryRun:
    """Prints each body."""

    def __init__(self) -> None:
        self._bytes = 0

    def line(self, key: bytes, body: bytes, found: bytes | RowError | None) -> bytes:
        """As in Preview."""
        self._bytes += 0 if isinstance(found, bytes) else len(body)
        return body + b"\n"

    def report(self, stats: Stats) -> list[str]:
        """As in Preview."""
        asked = stats.rows - stats.cached - stats.failed
        return [
            f"{stats.rows} rows: {asked} to be asked, {stats.cached} in the cache, {stats.failed} failed",
            f"{self._bytes} bytes of requests to be sent, about {self._bytes // 4} tokens",
        ]


class ToBatch:
    """Prints each request that the cache has no answer to, once.

    An answer that does not pass the checks would come again: the ordinary run asks for a better one.
    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._printed = self._equal = self._unusable = 0

    def line(self, key: bytes, body: bytes, found: bytes | RowError | None) -> bytes:
        """As in Preview."""
        if found is not None:
            self._unusable += isinstance(found, RowError)
            return b""
        if not self._seen.add(key):
            self._equal += 1
            return b""
        self._printed += 1
        return _LINE % (key.hex().encode(), body)

    def report(self, stats: Stats) -> list[str]:
        """As in Preview."""
        counts = [f"{self._printed} requests printed", f"{stats.cached} in the cache", f"{stats.failed} failed"]
        if self._equal:
            counts.append(f"{self._equal} equal to one before")
        if self._unusable:
            counts.append(f"{self._unusable} with an unusable answer, which the ordinary run asks for again")
        return [f"{stats.rows} rows: {', '.join(counts)}"]
