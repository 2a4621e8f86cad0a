"""What ends a run: a server, an input, or a prompt for which every row fails alike.

Only as long as nothing has succeeded. A success is a row that has its answer, also from the cache.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from llmfilter.answers.content import extract
from llmfilter.api.faults import NEVER, ModelMissing
from llmfilter.errors import Faulty, Retryable, RowError, RunError
from llmfilter.stats import Stats
from llmfilter.words import printable

REJECTED_MOST = 32  # rows that fail before any success: all the others would, too
LATE_MOST = 8  # rows given up at a time limit, each after a long wait, which was most likely billed
CUT_OFF_MOST = 2  # rows whose connection always broke: one alone may be what breaks it
FOREIGN_MOST = 3  # answers that are no completions: each of them may have been billed
UNUSABLE = ("unparsable", "invalid", "truncated")
_SHOWN = 200  # characters of a fault
# Fields that each request has alike, beside those of -o; how a run goes without them.
_WAYS = {
    "temperature": "give -o temperature=null, or for a model that reasons -o reasoning_effort=none",
    "response_format": "give -o response_format=null and ask for JSON in the prompt, or take text with --text",
    "model": "check -m",
}
# A row's own length can be what is wrong with these.
_LENGTHS = {"max_tokens", "max_completion_tokens"}


class Hopeless:
    """Tells, until the first success, whether what one row met every row will meet.

    fields: the fields that all requests share.
    """

    def __init__(self, stats: Stats, fields: Collection[str] = ()) -> None:
        self._stats = stats
        self._fields = {"model", *fields}
        self._has_answered = False  # if only with an answer of no use
        self._has_spoken = False  # if only in an error
        self._rejected = self._late = self._cut_off = 0
        self._foreign = 0
        self._unusable: list[RowError] = []
        self._unsent = 0
        self._first_unsent: RowError | None = None
        self.has_succeeded = False

    def succeed(self) -> None:
        """Note that a row has its answer."""
        self.has_succeeded = True
        self._unusable.clear()

    def hear_answer(self) -> None:
        """Note that the server has answered a row, usable or not."""
        self._has_answered = True

    def hear(self, fault: RowError) -> None:
        """Note what the server has said in an error; raise RunError if it is no server of this kind at all."""
        self._has_spoken |= fault.status is not None or fault.raw is not None
        if self.is_foreign(fault):
            assert isinstance(fault, Faulty) and fault.shape
            self._foreign += 1
            if self._foreign >= FOREIGN_MOST:
                what, way = fault.shape
                raise RunError(f"the server's first {FOREIGN_MOST} answers are not chat completions but {what}: {way}")

    def is_foreign(self, fault: RowError) -> bool:
        """Return whether an answer is no completion at all, and was none before: not to be asked for again."""
        return isinstance(fault, Faulty) and fault.shape is not None and not self._is_proven

    def hear_unusable(self, fault: RowError) -> None:
        """Note an answer that is of no use; raise RunError if all are."""
        if fault.kind in UNUSABLE and not (self.has_succeeded or self._stats.answered):
            self._unusable.append(fault)
            if len(self._unusable) >= REJECTED_MOST:
                raise RunError(f"none of the first {REJECTED_MOST} answers can be used: {common(self._unusable)}")

    def reject(self, fault: RowError) -> RowError:
        """Note that a row has failed for good; raise RunError if all of them would.

        Return the row's error, with the way out where nothing was ever heard of the server.
        """
        if self._is_proven:
            return fault
        if isinstance(fault, Retryable) and fault.is_late:
            self._late += 1
            if self._late >= LATE_MOST:
                raise RunError(f"the first {LATE_MOST} rows all ended at a time limit, the last with {fault.message}")
        elif isinstance(fault, Retryable) and fault.kind == "network" and not self._has_spoken:
            self._cut_off += 1
            fault = fault.but(message=f"{fault.message}: {fault.advice}")
            if fault.is_unreachable or self._cut_off >= CUT_OFF_MOST:
                raise RunError(f"the server can't be reached: {fault.message}")
        if isinstance(fault, ModelMissing):
            raise RunError(f"the server has no such model ({fault.message}): check -m and -u")
        if fault.kind == "http" and fault.status and (fault.status < 500 or fault.status in NEVER):
            if (field := self._blamed(fault)) is not None:
                way = _WAYS.get(field, f"leave out -o {field}=…, or give -o {field}=null")
                raise RunError(f"the server refuses `{field}`, which every request has ({fault.message}): {way}")
            self._rejected += 1
            if self._rejected >= REJECTED_MOST:
                raise RunError(f"the server refused the first {REJECTED_MOST} rows, the last with {fault.message}")
        return fault

    def reject_unsent(self, fault: RowError) -> None:
        """Note that no request could be made of a row; raise RunError if that holds for all."""
        self._first_unsent = self._first_unsent or fault
        self._unsent += 1
        if self._unsent == REJECTED_MOST == self._stats.rows:
            raise RunError(
                "check the prompt and the input: "
                f"none of the first {REJECTED_MOST} rows can be sent; the first: {self._first_unsent.message}"
            )

    @property
    def _is_proven(self) -> bool:
        return self._has_answered or self.has_succeeded or bool(self._stats.answered)

    def _blamed(self, fault: RowError) -> str | None:
        """Return the field that a 400 or 422 blames, if all requests share it; None if it may be the row's own."""
        if fault.status not in (400, 422):
            return None
        if fault.param:
            name = re.split(r"[.\[]", fault.param)[0]
            return name if name in self._fields and name not in _LENGTHS else None
        names = self._fields - _LENGTHS - {"model"}  # a word of many messages
        return next((name for name in sorted(names) if re.search(rf"\b{re.escape(name)}\b", fault.message)), None)


def common(faults: Collection[RowError]) -> str:
    """Return what unusable answers have in common, and the way out."""
    raws = [fault.raw or "" for fault in faults]
    if all(fault.kind == "truncated" for fault in faults):
        return "each was cut off: raise -o max_tokens=N, or for answers in plain text give --text"
    if all(raw.strip().startswith("[") for raw in raws):
        return 'they are lists: ask for an object that holds the list, like {"items": [...]}'
    if not any("{" in raw for raw in raws):
        return "they are not JSON: for answers in plain text give --text, else ask for a JSON object in the prompt"
    missing = set.intersection(*[set(re.findall(r"the key '([^']*)' is missing", fault.message)) for fault in faults])
    if missing:
        keys = Counter(key for raw in raws for key in _keys(raw)).most_common(10)
        has = ", ".join(printable(key, 50) for key, _ in keys)
        return f"they lack the key `{printable(min(missing), 50)}`; they have: {has}"
    (message, number), *_ = Counter(printable(fault.message, _SHOWN) for fault in faults).most_common(1)
    return f"{message} ({number} of {len(faults)})"


def _keys(raw: str) -> Mapping[str, Any]:
    try:
        return extract(raw)[1]
    except RowError:
        return {}
