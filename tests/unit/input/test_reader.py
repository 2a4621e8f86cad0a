"""rows: bytes → lines → records."""

import asyncio
import os
import threading
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from server import PATIENCE_S

from llmfilter.errors import RowError
from llmfilter.input.reader import BOM, LINE_BYTES_MAX, SHOWN_BYTES, Overlong, Reader, Splitter
from llmfilter.input.records import parse_record

MIB = b"x" * (1 << 20)
PARTS = [BOM[:1], BOM[1:], BOM]


def split(chunks: Iterable[bytes]) -> list[bytes]:
    """All lines that come out."""
    splitter = Splitter()
    return [*[line for chunk in chunks for line in splitter.feed(chunk)], *splitter.flush()]


def lines_of(data: bytes) -> list[bytes]:
    """What is to come out: a last line counts even without its newline."""
    lines = data.split(b"\n")
    return [line.removeprefix(BOM) for line in (lines if lines[-1] else lines[:-1])]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"\x00", b"\xff", b" ", *PARTS])).map(b"".join)))
@example([])
@example([b"a\n", *PARTS, b"b\n"])
@example([BOM + b"a\n" + BOM, b"b", BOM])
@example([b"\n"])
@example([b"", b"a", b"", b"\n", b"b"])
def test_any_chunks_give_the_lines_of_the_whole(chunks: list[bytes]) -> None:
    assert split(chunks) == lines_of(b"".join(chunks))


def test_lines_come_out_as_soon_as_they_end() -> None:
    splitter = Splitter()
    assert splitter.feed(b"a\nb") == [b"a"]
    assert splitter.feed(b"c\n") == [b"bc"]
    assert splitter.flush() == []


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [1 << 10, 1 << 20, LINE_BYTES_MAX])
def test_a_line_that_is_too_long_keeps_its_beginning_only(size: int, end: bytes) -> None:
    data = b'ab\n{"a":' + b"x" * LINE_BYTES_MAX + end
    lines = split(data[start : start + size] for start in range(0, len(data), size))
    assert lines == [b"ab", (b'{"a":' + MIB)[:SHOWN_BYTES]]
    assert isinstance(lines[1], Overlong)
    assert not isinstance(lines[0], Overlong)


def test_the_line_after_one_that_is_too_long_is_whole() -> None:
    lines = split([*[MIB] * 65, b"\n{", b"}\n"])
    assert lines[1:] == [b"{}"]
    assert not isinstance(lines[1], Overlong)


def test_a_line_of_just_the_greatest_length_is_whole() -> None:
    chunks = [MIB] * (LINE_BYTES_MAX >> 20)
    (line,) = split([*chunks, b"\n"])
    assert len(line) == LINE_BYTES_MAX
    assert not isinstance(line, Overlong)
    (line,) = split([*chunks, b"x\n"])
    assert isinstance(line, Overlong)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"\n", b"a", b"bc\n", BOM, b" " * 99]), max_size=20))
def test_a_descriptors_lines_are_all_handed_out_and_counted(chunks: list[bytes]) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        rows, lines, before = Reader(reading), list[bytes](), 0
        try:
            for chunk in chunks:
                os.write(writing, chunk)
                await asyncio.sleep(0)  # the thread that reads may come in between
            os.close(writing)
            async for block in rows:
                assert rows.bytes_until(len(lines)) == before
                lines += block
                assert rows.lines_read == len(lines)
                before = rows.bytes_read
                assert rows.bytes_until(len(lines)) == before
        finally:
            os.close(reading)
        data = b"".join(chunks)
        wanted = lines_of(data)
        assert lines == wanted
        assert (rows.bytes_read, rows.ended) == (len(data), True)

    asyncio.run(main())


@pytest.mark.parametrize("is_waiting", [True, False])
def test_once_stopped_nothing_more_is_handed_out_whether_there_is_more_or_not(is_waiting: bool) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        before = threading.enumerate()
        rows = Reader(reading)
        (reader,) = set(threading.enumerate()) - set(before)
        os.write(writing, b"a\n")
        async with asyncio.timeout(PATIENCE_S):
            assert await anext(rows) == [b"a"]
            if is_waiting:
                asyncio.get_running_loop().call_soon(rows.stop)
            else:
                os.write(writing, b"b\n")
                os.close(writing)
                await asyncio.to_thread(reader.join)  # then all of it is here
                rows.stop()
            with pytest.raises(StopAsyncIteration):
                await anext(rows)
        assert not rows.ended
        if is_waiting:
            os.close(writing)
            reader.join()
        os.close(reading)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b' \t{"a": 1}\r', {"a": 1}),
        (b"{}", {}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"a": "\\u0000"}', {"a": "\0"}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
    ],
)
def test_a_json_object_is_a_record(line: bytes, record: object) -> None:
    assert parse_record(line) == record


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"hello", ["not JSON", "column 1"]),
        (b'{"a": 1', ["not JSON", "column 8"]),
        (b'{"a": 1} {"b": 2}', ["not JSON"]),
        (b'{"a": NaN}', ["not JSON"]),
        (b'{"a": "\xff"}', ["not UTF-8, at byte 7", "iconv"]),
        (b'{"a": "\xed\xa0\x80"}', ["not UTF-8, at byte 7"]),
        (b'{"a": \x00}', ["not JSON"]),
        (b'\x0c{"a": 1}', ["not JSON"]),
        (b'{"a":' * 100_000, ["not JSON", "nested too deeply"]),
        (b"[", ["not JSON", "jq -c '.[]'"]),
        (b'[{"a": 1},', ["not JSON", "jq -c '.[]'"]),
        (b'[{"a": 1}]', ["an array", "jq -c '.[]'"]),
        (b'"text"', ["a string"]),
        (b"1.5", ["a number"]),
        (b"1e400", ["a number"]),
        (b"true", ["a boolean"]),
        (b"null", ["null"]),
        (Overlong(b'{"a": "xxx'), ["longer than 64 MiB"]),
        (Overlong(b'{"a": 1}' + b" " * 1000), ["longer than 64 MiB"]),
        (Overlong(b"   "), ["longer than 64 MiB"]),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_no_record_is_an_input_error_that_says_why(line: bytes, words: list[str]) -> None:
    with pytest.raises(RowError) as caught:
        parse_record(line)
    assert caught.value.kind == "input"
    assert [word for word in words if word not in caught.value.message] == []
