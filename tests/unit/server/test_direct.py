"""direct: which runs go the quick way through aiohttp, and what one connection does with time and with bytes.

What goes that way is tested on the program.
"""

import asyncio
from collections.abc import Callable

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import run

from llmfilter.server import direct
from llmfilter.server.direct import LAST_LOOK_S, Connection, Overdue
from llmfilter.server.endpoint import make_endpoint
from llmfilter.server.exchange import Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
HEAD, BODY = OK[:-2], OK[-2:]
TIMEOUT_S = 10


def is_quick(base_url: str = "http://127.0.0.1:9/v1", **environ: str) -> bool:
    """Whether a run over a server goes the quick way."""

    async def look() -> bool:
        wire = Wire(make_endpoint(base_url, [], environ, needs_key=False), 1.0)
        await wire.close()
        return wire._direct is not None

    return asyncio.run(look())


def test_the_inside_of_the_aiohttp_that_is_here_is_known() -> None:
    assert is_quick()


def test_through_a_proxy_requests_go_the_sessions_way() -> None:
    assert not is_quick("http://llm.test/v1", http_proxy="http://127.0.0.1:9")


def test_an_inside_that_has_changed_goes_the_sessions_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(direct._PARSER_PARAMS, "not_there", 1)
    assert not is_quick()


@pytest.mark.parametrize("attribute", ["abort", "is_connected", "should_close", "transport", "_parser", "_payload"])
def test_an_attribute_that_is_gone_goes_the_sessions_way(attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(Connection):
        def __getattribute__(self, name: str) -> object:
            if name == attribute:
                raise AttributeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(direct, "Connection", Changed)
    assert not is_quick()


@pytest.mark.parametrize("method", ["feed_data", "set_exception"])
def test_what_aiohttp_does_not_call_any_more_goes_the_sessions_way(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, method, lambda *_: None)
    assert not is_quick()


def test_where_no_connection_can_be_made_alone_requests_go_the_sessions_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aiohttp.TCPConnector, "_create_connection")
    monkeypatch.delattr(aiohttp.BaseConnector, "_create_connection")
    assert not is_quick()


class Transport(asyncio.Transport):
    """Where a connection writes; tells it when it is closed, as a loop does."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)


def connect() -> tuple[Connection, Transport]:
    connection = Connection(asyncio.get_running_loop())
    transport = Transport(connection)
    connection.connection_made(transport)
    return connection, transport


async def ask(connection: Connection, *after_s: float, parts: tuple[bytes, ...] = (OK,)) -> bytes:
    """The body that comes in parts, each after so many seconds."""
    loop = asyncio.get_running_loop()
    answer = connection.ask(b"?", loop.time() + TIMEOUT_S)
    for seconds, part in zip(after_s, parts, strict=True):
        loop.call_later(seconds, connection.data_received, part)
    return await body_of(await answer)


async def body_of(answer: direct.Answer) -> bytes:
    return answer if isinstance(answer, bytes) else await answer[1].read()


exchanges = st.tuples(st.integers(0, 30), st.sampled_from([0, 1, 8, 11, 30]), st.sampled_from([0, 1, 8, 11, 30]))


@settings(deadline=None)
@given(st.lists(exchanges, max_size=6))
def test_each_exchange_ends_at_its_own_due_time_and_only_if_it_is_not_over(pauses: list[tuple[int, int, int]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        connection, _ = connect()
        for pause_s, head_s, body_s in pauses:
            await asyncio.sleep(pause_s)
            start = loop.time()
            try:
                assert await ask(connection, head_s, head_s + body_s, parts=(HEAD, BODY)) == BODY
                assert loop.time() - start == pytest.approx(head_s + body_s) and head_s + body_s < TIMEOUT_S
            except Overdue:
                assert head_s + body_s > TIMEOUT_S
                assert loop.time() - start == pytest.approx(TIMEOUT_S + LAST_LOOK_S)
                assert connection.should_close
                await asyncio.sleep(100)  # what comes late reaches nobody
                connection, _ = connect()

    run(main())


def test_who_was_in_time_may_stay_idle_for_ever() -> None:
    async def main() -> None:
        connection, _ = connect()
        assert await ask(connection, 1) == BODY
        await asyncio.sleep(1000)
        assert connection.is_idle and not connection.should_close
        assert await ask(connection, 1) == BODY

    run(main())


def test_what_came_during_a_halt_of_the_whole_process_is_read_before_its_time_is_over() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        connection, _ = connect()
        answer = connection.ask(b"?", loop.time() + TIMEOUT_S)
        loop.call_at(TIMEOUT_S, loop.call_soon, connection.data_received, OK)  # the timer is first
        assert await body_of(await answer) == BODY

    run(main())


BREAKS: dict[str, Callable[[Connection], None]] = {
    "closed": lambda connection: connection.connection_lost(None),
    "reset": lambda connection: connection.connection_lost(ConnectionResetError(104, "reset")),
}


@pytest.mark.parametrize("end", BREAKS)
@pytest.mark.parametrize(("part", "is_unanswered"), [(b"", True), (b"HTTP/1.1 2", False)])
def test_a_break_is_told_apart_from_one_within_the_answer(end: str, part: bytes, is_unanswered: bool) -> None:
    async def main() -> None:
        connection, _ = connect()
        answer = connection.ask(b"?", TIMEOUT_S)
        if part:
            connection.data_received(part)
        BREAKS[end](connection)
        error = answer.exception()
        assert error is not None
        assert direct.is_unanswered(error) is (is_unanswered or end == "reset")

    run(main())


START = b"HTTP/1.1 200 OK\r\n"
HEADS = {
    "nginx": (
        b"Server: nginx\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: keep-alive\r\n",
        True,
    ),
    "uvicorn": (b"date: Thu\r\nserver: uvicorn\r\ncontent-length: 2\r\ncontent-type: application/json\r\n", True),
    "closes": (b"Content-Length: 2\r\nConnection: close\r\n", False),
    "two lengths": (b"Content-Length: 2\r\nContent-Length: 2\r\n", False),
    "packed": (b"Content-Length: 2\r\nContent-Encoding: identity\r\n", False),
    "no length": (b"Server: x\r\n", False),
    "upgrades": (b"Content-Length: 2\r\nUpgrade: h2c\r\n", False),
    "a name with a space": (b"Content-Length: 2\r\nX Y: 1\r\n", False),
    "folded": (b"Content-Length: 2\r\nX: 1\r\n Transfer-Encoding: chunked\r\n", False),
    "not ASCII": (b"Content-Length: 2\r\nX: \xc3\xa9\r\n", False),
    "a body that is shorter": (b"Content-Length: 3\r\n", False),
}


@pytest.mark.parametrize("name", HEADS)
def test_an_answer_is_ordinary_if_its_length_is_all_that_is_said_of_its_body(name: str) -> None:
    async def main() -> None:
        fields, is_ordinary = HEADS[name]
        connection, _ = connect()
        answer = connection.ask(b"?", TIMEOUT_S)
        connection.data_received(START + fields + b"\r\n{}")
        is_taken = answer.done() and answer.exception() is None and isinstance(answer.result(), bytes)
        assert is_taken == is_ordinary

    run(main())


@pytest.mark.parametrize("fields", [fields for fields, is_ordinary in HEADS.values() if is_ordinary])
def test_wherever_it_is_cut_an_answer_has_the_same_body(fields: bytes) -> None:
    async def main() -> None:
        connection, _ = connect()
        data = START + fields + b"\r\n{}"
        for cut in range(len(data)):
            assert await ask(connection, 1, 2, parts=(data[:cut], data[cut:])) == b"{}"
            assert connection.is_idle and not connection.should_close

    run(main())


@pytest.mark.parametrize("parts", [(OK + OK,), (OK + b"\n\n<!-- x -->",), (OK, OK), (OK, b"junk"), (OK, b"H")])
def test_what_comes_unasked_ends_the_connection(parts: tuple[bytes, ...]) -> None:
    async def main() -> None:
        connection, _ = connect()
        answer = connection.ask(b"?", TIMEOUT_S)
        for data in parts:
            connection.data_received(data)
        assert await body_of(answer.result()) == BODY
        assert connection.should_close or connection.transport is None

    run(main())


def test_a_newline_behind_an_answer_is_nothing() -> None:
    async def main() -> None:
        connection, _ = connect()
        assert await ask(connection, 1, parts=(OK + b"\r\n",)) == BODY
        assert await ask(connection, 1) == BODY

    run(main())


CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("rest", [b"zz\r\n", b"2\r\n{}XX\r\n0\r\n\r\n", b"2\r\n{}\r\nzz\r\n", b"2;\0\r\n{}\r\n"])
@pytest.mark.parametrize("is_read", [True, False], ids=["while it is read", "before it is read"])
def test_who_reads_a_body_that_breaks_is_told(rest: bytes, is_read: bool) -> None:
    async def main() -> None:
        connection, _ = connect()
        answer = connection.ask(b"?", TIMEOUT_S)
        connection.data_received(CHUNKED)
        body = asyncio.ensure_future(body_of(answer.result()))
        if is_read:
            await asyncio.sleep(0)
        for byte in rest:
            if connection.transport:
                connection.data_received(bytes([byte]))
        with pytest.raises(aiohttp.ClientPayloadError):
            await body
        assert connection.should_close

    run(main())


def test_a_connection_that_is_closed_while_idle_is_not_asked() -> None:
    async def main() -> None:
        connection, transport = connect()
        connection.connection_lost(None)
        error = connection.ask(b"?", TIMEOUT_S).exception()
        assert isinstance(error, aiohttp.ServerDisconnectedError)
        assert transport.written == b""

    run(main())
