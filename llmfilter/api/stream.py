"""A stream of events → the completion that would have come without it. Pure.

Each line `data: JSON` is a chunk: what is new in each choice (its `delta`), and what the whole completion has
beside them. A delta's strings are joined and its lists appended, whatever their names; of all else the last
value counts. What came is kept in pieces; once a MiB they are joined, and their size is looked at.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import orjson

from llmfilter.api.faults import server_words
from llmfilter.errors import Faulty, RowError
from llmfilter.jsontext import parse_json

BYTES_MOST = 16 << 20  # of a completion
_OPTIONS = b',"stream_options":{"include_usage":true}'
# Named as what is wrong, not as a key of the request that an error quotes.
_REFUSED = re.compile(rb"""stream_options(?!\\?["']\s*:)""")
_BOM = b"\xef\xbb\xbf"  # may come first, and is no part of the stream: WHATWG HTML, 9.2.6
_START = re.compile(rb"(?:%b)?\s*(?:data|event|id|retry|error)?:" % _BOM)
_WHOLE = {"role", "id", "type", "name"}  # strings that come in one piece, from some servers with every chunk
_loads = orjson.loads
_LOOK_BYTES = 1 << 20  # of a stream, between two looks at the size of what is kept of it


def is_stream(body: bytes) -> bool:
    """Return whether a body is a stream of events, by its beginning."""
    return _START.match(body) is not None


def ask_stream(body: bytes, has_usage: bool = True) -> bytes:
    """Return a request's body with what asks for a stream; has_usage: and for the tokens at its end."""
    return b'%b,"stream":true%b}' % (body[:-1], _OPTIONS if has_usage else b"")


def refuses_usage(status: int, body: bytes) -> bool:
    """Return whether an error says that the server does not know what asks for the tokens (Mistral, older Azure)."""
    return status in (400, 422) and _REFUSED.search(body) is not None


def put_together(body: bytes) -> bytes:
    """Return the completion in a whole stream; raise as `Stream` does."""
    stream = Stream()
    stream.feed(body)
    return stream.end()


class Stream:
    """Puts one completion together from the bytes of a stream, cut anywhere.

    bytes_most: how large the completion may become; is_over: its end has come, behind which nothing is to be fed.
    """

    def __init__(self, bytes_most: int = BYTES_MOST) -> None:
        self._bytes_most = bytes_most
        self._has_begun = False
        self._line: list[bytes] = []  # what has come of a line that is not whole yet
        self._look_in_bytes = _LOOK_BYTES
        self._top: dict[str, Any] = {}
        self._usage: Any = None
        self._ends_with_usage = False
        self._chunk: dict[str, Any] = {}  # the last one, without its choices
        self._choice: dict[str, Any] | None = None  # the last one, without its delta
        self._message = _Joined()  # of that choice
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Take what has come; raise Faulty where that is an error, RowError where it becomes too large."""
        if not self._has_begun:
            data = data.lstrip(_BOM)
            self._has_begun = data != b""
        lines = data.split(b"\n")
        if self._line or lines[-1]:
            self._keep_rest(lines)
        for line in lines:
            if line[:5] == b"data:":
                try:
                    chunk = _loads(line[5:])
                except orjson.JSONDecodeError:
                    chunk = self._parse_odd(line[5:].strip())
                    if self.is_over:
                        return
                self._add(chunk)
            elif line and line[:6] == b"error:":  # llama.cpp's
                raise self._error(self._parse_odd(line[6:].strip()))
        self._look_in_bytes -= len(data)
        if self._look_in_bytes < 0:
            self._look_in_bytes = _LOOK_BYTES
            self._check_size(self._body())

    def end(self) -> bytes:
        """Return the completion's body; raise Faulty where it is not whole."""
        try:
            self.feed(b"\n")  # its last line may have no end
        except Faulty:
            if not self.is_whole:
                raise
        if not self.is_whole:
            words = server_words(self._top, b"")  # of an error that does not look like one
            words = f": {words}" if words else " (no finish_reason, no usage)"
            raise self._fault(f"the stream ended before the answer did{words}", self._top)
        return self._body()

    @property
    def is_whole(self) -> bool:
        """Return whether nothing of the answer is missing: it had a finish_reason, or a final usage."""
        choices = self._choices.values()
        return bool(choices) and (self._ends_with_usage or all(each.values.get("finish_reason") for each in choices))

    @property
    def text(self) -> str | None:
        """Return what has come of the first choice's text, or of its reasoning; None if nothing has."""
        if not self._choices:
            return None
        message = self._choices[min(self._choices)].message
        return next(filter(None, map(message.text, ("content", "reasoning_content", "reasoning"))), None)

    def _keep_rest(self, lines: list[bytes]) -> None:
        """Keep what may not be a whole line yet, and put before the first line what was kept."""
        self._line.append(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(self._line)
            self._line = [lines[-1]] if lines[-1] else []
        del lines[-1]

    def _parse_odd(self, data: bytes) -> Any:
        """Return what orjson does not take for JSON; raise Faulty where it is none."""
        self.is_over = data == b"[DONE]"
        if self.is_over or not data:
            return None
        try:
            return parse_json(data)
        except ValueError:
            raise self._fault("the stream holds an event that is not whole JSON") from None

    def _add(self, chunk: Any) -> None:
        """Take a chunk. Nearly always all but its delta is as in the chunk before."""
        if type(chunk) is not dict:
            if chunk is None:
                return
            raise self._error(chunk)
        choices = chunk.pop("choices", None)
        if chunk != self._chunk:
            self._note(chunk)
        if choices and type(choices) is list:
            self._ends_with_usage = False
            for choice in choices:
                if type(choice) is dict:
                    delta = choice.pop("delta", None)
                    if choice != self._choice:
                        self._turn_to(choice)
                    if type(delta) is dict:
                        self._message.add(delta)
        elif chunk.get("usage"):
            self._ends_with_usage = True

    def _note(self, chunk: dict[str, Any]) -> None:
        """Take what a chunk has beside its choices; raise Faulty where that is an error."""
        if chunk.get("error") is not None:
            raise self._error(chunk)
        self._chunk = chunk
        self._top.update(chunk)
        self._usage = chunk.get("usage") or self._usage

    def _turn_to(self, choice: dict[str, Any]) -> None:
        """Take what a choice has beside its delta; the next delta is its."""
        index = choice.get("index")
        ours = self._choices[index if type(index) is int else 0]
        ours.add(choice)
        # A token may well come twice with the same log-probabilities.
        self._choice = None if choice.get("logprobs") or "message" in choice else choice
        self._message = ours.message

    def _error(self, document: Any) -> Faulty:
        words = server_words(document, _dump(document))
        return self._fault(f"the server sent an error within the stream: {words}", document)

    def _fault(self, message: str, document: Any = None) -> Faulty:
        return Faulty(message, b"", document).but(raw=self.text)

    def _check_size(self, body: bytes) -> None:
        if len(body) + sum(map(len, self._line)) > self._bytes_most:
            raise RowError("server", f"the answer is larger than {self._bytes_most >> 20} MiB")

    def _body(self) -> bytes:
        """Return the completion as far as it has come."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        hidden = [self._top.get("x_groq"), *(choice.values for choice in choices)]  # Groq's and Moonshot's
        usages = [self._usage, *(place.get("usage") for place in hidden if type(place) is dict)]
        top = {key: _dump(value) for key, value in self._top.items()}
        top["object"] = b'"chat.completion"'
        top["choices"] = b"[%b]" % b",".join([choice.encode() for choice in choices])
        if usage := next(filter(None, usages), None):
            top["usage"] = _dump(usage)
        return _object(top)


class _Choice:
    """One choice: its message and log-probabilities, put together; of all else the last value."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.message = _Joined()
        self.logprobs = _Joined()

    def add(self, choice: dict[str, Any]) -> None:
        """Take what is new beside the delta."""
        for key, value in choice.items():
            if key == "message" and type(value) is dict:
                self.message.add(value)
            elif key == "logprobs" and type(value) is dict:
                self.logprobs.add(value)
            elif value or key not in self.values:
                self.values[key] = value

    def encode(self) -> bytes:
        """Return the choice as JSON."""
        members = {key: _dump(value) for key, value in self.values.items()}
        members["message"] = _object({"role": b'"assistant"', "content": b"null", **self.message.members()})
        if logprobs := self.logprobs.members():
            members["logprobs"] = _object(logprobs)
        return _object(members)


class _Joined:
    """An object that comes in pieces: its strings are joined, its lists appended, objects in it likewise."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.texts: defaultdict[str, list[str]] = defaultdict(list)
        self.lists: defaultdict[str, list[bytes]] = defaultdict(list)  # of items, encoded
        self.objects: defaultdict[str, _Joined] = defaultdict(_Joined)
        self.calls: defaultdict[int, _Joined] = defaultdict(_Joined)

    def add(self, delta: dict[str, Any]) -> None:
        """Take what is new."""
        for key, value in delta.items():
            if type(value) is str:
                self.texts[key].append(value)
            elif type(value) is list:
                self._extend(key, value)
            elif type(value) is dict:
                self.objects[key].add(value)
            elif value is not None or key not in self.values:
                self.values[key] = value

    def text(self, key: str) -> str:
        """Return what has come of a string."""
        pieces = self.texts.get(key, [])
        return next(filter(None, pieces), "") if key in _WHOLE else "".join(pieces)

    def members(self) -> dict[str, bytes]:
        """Return the members that have come so far, encoded; join their pieces."""
        members = {key: _dump(value) for key, value in self.values.items()}
        for key in self.texts:
            self.texts[key] = [self.text(key)]
            members[key] = _dump(self.texts[key][0])
        members |= {key: _object(value.members()) for key, value in self.objects.items()}
        for key in self.lists:
            self._end_part(key)
            self.lists[key] = [b",".join(self.lists[key])]
            members[key] = b"[%b]" % self.lists[key][0]
        if self.calls:
            calls = [_object(self.calls[index].members()) for index in sorted(self.calls)]
            members["tool_calls"] = b"[%b]" % b",".join(calls)
        return members

    def _extend(self, key: str, items: list[Any]) -> None:
        self._end_part(key)
        if key != "tool_calls" or not items:
            self.lists[key] += map(_dump, items)
            return
        for call in items:
            if type(call) is dict:
                index = call.pop("index", None)
                if type(index) is not int:  # Gemini: each call is whole
                    index = len(self.calls)
                self.calls[index].add(call)

    def _end_part(self, key: str) -> None:
        """Make a part of the text between the parts of a content (Mistral's, where it reasons)."""
        if text := "".join(self.texts.pop(key, ())):
            self.lists[key].append(_dump({"type": "text", "text": text}))


def _dump(value: Any) -> bytes:
    """Return JSON, also of what orjson can't write: lone surrogates, numbers too large for it."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode(
            "utf-8", "backslashreplace"
        )


def _object(members: Mapping[str, bytes]) -> bytes:
    return b"{%b}" % b",".join([b"%b:%b" % (_dump(key), value) for key, value in members.items()])
