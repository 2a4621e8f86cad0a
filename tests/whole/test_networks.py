"""Networks as they are: proxies, TLS, IPv6, base URLs of all sorts, and what is said when they fail."""

import asyncio
import json
import re
import socket
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import which
from typing import Self

import pytest
from program import ASK, COMMAND, Program, Programs, may_trace, rows
from server import PATIENCE_S, Response, Server, completion, echo

KEY = "sk-of-the-server-0123456789"
NAME = "llm.test"  # no DNS knows it: only a proxy finds it
ANYWHERE = "0.0.0.0"  # a server on this machine that does not look like one: it can be behind a proxy, or not
HEAD = b"\r\n\r\n"
pytestmark = pytest.mark.each_way
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """Listens on a free port while it is entered, and passes everything on to `target` on this machine."""

    def __init__(self, target: int = 0, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.port = 0
        self._host = host
        self._tls = tls
        self._listens = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listens.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._receive, self._host, 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._stopping.wait()
        server.close()

    async def _receive(self, *client: *Streams) -> None:
        try:
            async with closing(client):
                await self.carry(client)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of the two has gone, or the test is over

    async def carry(self, client: Streams) -> None:
        """What is done with a connection."""
        await tunnel(client, self.target)


class Proxy(Relay):
    """A proxy that finds every name on this machine.

    asked: the first lines of what it was asked, and the headers that came with them; user: whom it
    lets through ("name:password"), or None for everyone; refusal: what it says to the others.
    """

    def __init__(self, user: str | None = None, tls: ssl.SSLContext | None = None, refusal: str = "407 No") -> None:
        super().__init__(tls=tls)
        self._refusal = refusal
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self._pass = user and f"Basic {b64encode(user.encode()).decode()}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def carry(self, client: Streams) -> None:
        while head := await read_head(client[0]):
            first, headers = head
            self.asked.append(head)
            body = await client[0].readexactly(int(headers.get("content-length", 0)))
            if self._pass and headers.get("proxy-authorization") != self._pass:
                client[1].write(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\n\r\n".encode())
                continue
            method, target, _ = first.split(" ")
            if method == "CONNECT":
                client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await tunnel(client, int(target.rpartition(":")[2]))
                return
            await self._forward(client[1], method, target, headers, body)

    async def _forward(
        self, client: asyncio.StreamWriter, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        """One request to a server without TLS: asked for with its whole URL, passed on with the path only."""
        host, _, path = target.removeprefix("http://").partition("/")
        server = await asyncio.open_connection("127.0.0.1", int(host.rpartition(":")[2]))
        async with closing(server) as (reader, writer):
            lines = [f"{name}: {value}" for name, value in headers.items() if not name.startswith("proxy-")]
            writer.write("\r\n".join([f"{method} /{path} HTTP/1.1", *lines]).encode() + HEAD + body)
            head = await reader.readuntil(HEAD)
            size = int(dict(parse_head(head)[1])["content-length"])
            client.write(head + await reader.readexactly(size))


class Listener(Relay):
    """A server that keeps the head of the latest request as it came."""

    async def carry(self, client: Streams) -> None:
        while not client[0].at_eof():
            self.head = (await client[0].readuntil(HEAD)).decode()
            length = re.search(r"(?i)content-length: (\d+)", self.head)
            assert length
            await client[0].readexactly(int(length[1]))
            client[1].write(completion({"n": 1}).encode())


class NoTls(Relay):
    """A server that knows plain HTTP only, and finds a TLS handshake a bad request."""

    async def carry(self, client: Streams) -> None:
        await client[0].read(1)
        client[1].write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@asynccontextmanager
async def closing(streams: Streams) -> AsyncIterator[Streams]:
    try:
        yield streams
    finally:
        streams[1].close()


async def tunnel(client: Streams, port: int) -> None:
    """Carries bytes between a client and a port of this machine until one of the two closes."""
    async with closing(await asyncio.open_connection("127.0.0.1", port)) as server:
        ways = {asyncio.create_task(copy(client[0], server[1])), asyncio.create_task(copy(server[0], client[1]))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def read_head(reader: asyncio.StreamReader) -> tuple[str, Mapping[str, str]] | None:
    try:
        return parse_head(await reader.readuntil(HEAD))
    except asyncio.IncompleteReadError:
        return None


def parse_head(head: bytes) -> tuple[str, Mapping[str, str]]:
    first, *lines = head.decode().rstrip().split("\r\n")
    return first, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a throw-away certificate for NAME, ANYWHERE and this machine, which is its own authority."""
    if not which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=throw-away"
    names = f"subjectAltName=DNS:{NAME},DNS:localhost,IP:127.0.0.1,IP:{ANYWHERE}"
    usage = "keyUsage=critical,digitalSignature,keyCertSign"
    subprocess.run([*command.split(), "-addext", names, "-addext", usage], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def tls(certificate: Path) -> ssl.SSLContext:
    """What a server needs to speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def knows_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def ask(program: Programs, url: str, *args: str, **environ: str | None) -> Program:
    """A run over some rows, one after the other, with the key of the server."""
    return program.run(*ASK, "-j1", "-u", url, *args, input=rows(range(3)), env={"OPENAI_API_KEY": KEY, **environ})


def check_answered(run: Program) -> None:
    assert (run.status, len(run.rows), run.stderr) == (0, 3, b"")


def check_ended(run: Program, *words: str) -> None:
    """The run ended at its first row with one plain line that holds the words."""
    assert (run.status, run.rows, run.errors) == (3, [], [])
    assert len(run.said) == 1, "one plain line, no traceback"
    assert run.said[0].startswith("llmfilter: ")
    for word in words:
        assert word in run.said[0]


# Proxies


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_server_without_tls_is_asked_through_the_proxy(program: Programs, server: Server, variable: str) -> None:
    with Proxy() as proxy:
        url = f"http://{NAME}:{server.port}/v1"
        check_answered(ask(program, url, **{variable: proxy.url}))
    assert [first for first, _ in proxy.asked] == [f"POST {url}/chat/completions HTTP/1.1"] * 3
    assert [request.path for request in server.requests] == ["/v1/chat/completions"] * 3


def test_a_proxy_needs_no_scheme(program: Programs, server: Server) -> None:
    with Proxy() as proxy:
        check_answered(ask(program, f"http://{NAME}:{server.port}/v1", HTTP_PROXY=f"127.0.0.1:{proxy.port}"))
    assert len(proxy.asked) == 3


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_server_with_tls_is_asked_through_one_tunnel(
    program: Programs, server: Server, certificate: Path, tls: ssl.SSLContext, variable: str
) -> None:
    with Proxy() as proxy, Relay(server.port, tls=tls) as secure:
        authority = {"SSL_CERT_FILE": str(certificate / "cert.pem")}
        check_answered(ask(program, f"https://{NAME}:{secure.port}/v1", **{variable: proxy.url}, **authority))
    assert [first for first, _ in proxy.asked] == [f"CONNECT {NAME}:{secure.port} HTTP/1.1"]
    assert [request.path for request in server.requests] == ["/v1/chat/completions"] * 3


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_itself_may_speak_tls(
    program: Programs, server: Server, certificate: Path, tls: ssl.SSLContext, scheme: str
) -> None:
    with Proxy(tls=tls) as proxy, Relay(server.port, tls=tls) as secure:
        environ = {
            "ALL_PROXY": f"https://127.0.0.1:{proxy.port}",
            "SSL_CERT_FILE": str(certificate / "cert.pem"),
        }
        port = secure.port if scheme == "https" else server.port
        check_answered(ask(program, f"{scheme}://{NAME}:{port}/v1", **environ))
    assert len(proxy.asked) == (1 if scheme == "https" else 3)


@pytest.mark.parametrize("header", ["Authorization: Bearer $MINE", "api-key: $MINE", None])
def test_the_servers_key_is_not_for_the_proxy(
    program: Programs, server: Server, certificate: Path, tls: ssl.SSLContext, header: str | None
) -> None:
    with Proxy() as proxy, Relay(server.port, tls=tls) as secure:
        args = ["-H", header] if header else []
        authority = {"SSL_CERT_FILE": str(certificate / "cert.pem")}
        url = f"https://{NAME}:{secure.port}/v1"
        check_answered(ask(program, url, *args, HTTPS_PROXY=proxy.url, MINE=KEY, **authority))
    assert KEY in str(server.requests[0].headers)
    assert KEY not in str(proxy.asked)
    assert "Basic" not in str(proxy.asked)


def test_a_proxy_without_a_password_is_sent_none(program: Programs, server: Server) -> None:
    with Proxy() as proxy:
        check_answered(ask(program, f"http://{NAME}:{server.port}/v1", HTTP_PROXY=proxy.url))
    assert all("proxy-authorization" not in headers for _, headers in proxy.asked)
    assert {headers["authorization"] for _, headers in proxy.asked} == {f"Bearer {KEY}"}


def test_the_models_are_asked_for_through_the_proxy_too(program: Programs, server: Server) -> None:
    with Proxy() as proxy:
        check_answered(ask(program, f"http://{NAME}:{server.port}/v1", HTTP_PROXY=proxy.url, OPENAI_MODEL=None))
    assert proxy.asked[0][0] == f"GET http://{NAME}:{server.port}/v1/models HTTP/1.1"
    assert server.requests[1].json["model"] == "tiny"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_user_and_password_in_a_proxys_url_are_for_the_proxy_only(
    program: Programs, server: Server, certificate: Path, tls: ssl.SSLContext, scheme: str
) -> None:
    with Proxy("me:p@ss/w:rd") as proxy, Relay(server.port, tls=tls) as secure:
        environ = {
            f"{scheme}_proxy": f"http://me:p%40ss%2Fw%3Ard@127.0.0.1:{proxy.port}",
            "SSL_CERT_FILE": str(certificate / "cert.pem"),
        }
        port = secure.port if scheme == "https" else server.port
        check_answered(ask(program, f"{scheme}://{NAME}:{port}/v1", **environ))
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert all("proxy-authorization" not in request.headers for request in server.requests)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_another_password_is_named(program: Programs, scheme: str) -> None:
    with Proxy("me:right") as proxy:
        wrong = {f"{scheme}_proxy": f"http://me:wrong-password@127.0.0.1:{proxy.port}"}
        run = ask(program, f"{scheme}://{NAME}:9/v1", **wrong)
    check_ended(run, "the proxy", "407", "$HTTPS_PROXY")
    assert "wrong-password" not in run.said[0]
    assert len(proxy.asked) == 1, "it would refuse every row"


def test_a_proxys_own_401_is_not_told_as_the_servers(program: Programs) -> None:
    with Proxy("me:right", refusal="401 Unauthorized") as proxy:
        run = ask(program, f"https://{NAME}:9/v1", HTTPS_PROXY=proxy.url)
    check_ended(run, "the proxy refuses", "401", "$HTTPS_PROXY")
    assert "OPENAI" not in run.said[0]


def test_a_proxy_that_forbids_a_server_is_named(program: Programs) -> None:
    with Proxy("me:right", refusal="403 Forbidden") as proxy:
        run = ask(program, f"https://{NAME}:9/v1", "-r0", HTTPS_PROXY=proxy.url)
    check_ended(run, "the proxy does not connect to the server", "403 Forbidden")


def test_a_proxy_that_does_not_answer_is_named(program: Programs) -> None:
    with Proxy() as proxy:
        pass
    run = ask(program, f"http://{NAME}:9/v1", "-r0", HTTP_PROXY=f"http://me:secret-pass@127.0.0.1:{proxy.port}")
    check_ended(run, f"127.0.0.1:{proxy.port}", "proxy")
    assert "secret-pass" not in run.said[0]


@pytest.mark.parametrize("proxy", ["http://me:secret-pass@host:port", "http://me:secret-pass@", "http://[::1"])
def test_a_proxy_that_is_no_url_is_wrong_usage(program: Programs, proxy: str) -> None:
    run = ask(program, f"http://{NAME}:9/v1", HTTP_PROXY=proxy)
    assert (run.status, len(run.said)) == (2, 1)
    assert "proxy" in run.said[0]
    assert "secret-pass" not in run.said[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_never_behind_a_proxy(program: Programs, server: Server, host: str) -> None:
    with Proxy() as proxy:
        check_answered(ask(program, f"http://{host}:{server.port}/v1", HTTP_PROXY=proxy.url, ALL_PROXY=proxy.url))
    assert not proxy.asked


@pytest.mark.parametrize(
    ("variable", "no_proxy", "is_proxied"),
    [
        ("NO_PROXY", f"example.com, {ANYWHERE}", False),
        ("NO_PROXY", f"{ANYWHERE}:1", True),
        ("no_proxy", f"{ANYWHERE}:PORT", False),
        ("no_proxy", "*", False),
    ],
)
def test_what_no_proxy_names_is_asked_directly(
    program: Programs, server: Server, variable: str, no_proxy: str, is_proxied: bool
) -> None:
    with Proxy() as proxy:
        environ = {"HTTP_PROXY": proxy.url, variable: no_proxy.replace("PORT", str(server.port))}
        check_answered(ask(program, f"http://{ANYWHERE}:{server.port}/v1", **environ))
    assert bool(proxy.asked) is is_proxied
    assert len(server.requests) == 3


# TLS


def test_ssl_cert_file_names_the_authority_to_trust(
    program: Programs, server: Server, certificate: Path, tls: ssl.SSLContext
) -> None:
    with Relay(server.port, tls=tls) as secure:
        url = f"https://localhost:{secure.port}/v1"
        check_answered(ask(program, url, SSL_CERT_FILE=str(certificate / "cert.pem")))


@pytest.mark.skipif(not may_trace(), reason="strace is not here, or may not trace")
def test_certificates_are_read_only_for_a_server_with_tls(
    program: Programs, server: Server, certificate: Path, tls: ssl.SSLContext
) -> None:
    file, log = certificate / "cert.pem", program.folder / "log"
    strace = ["strace", "-f", "-qq", "-e", "trace=openat", "-P", str(file), "-o", str(log)]
    with Relay(server.port, tls=tls) as secure:
        for url in (f"http://localhost:{server.port}/v1", f"https://localhost:{secure.port}/v1"):
            run = program.run(
                *ASK,
                "-u",
                url,
                input=rows(range(3)),
                env={"SSL_CERT_FILE": str(file)},
                command=[*strace, *COMMAND],
            )
            check_answered(run)
            assert (file.name in log.read_text()) == url.startswith("https")


@pytest.mark.parametrize("is_proxied", [False, True], ids=["direct", "tunnel"])
def test_an_unknown_authority_is_one_plain_line(program: Programs, tls: ssl.SSLContext, is_proxied: bool) -> None:
    with Proxy() as proxy, Relay(tls=tls) as secure:
        url = f"https://{NAME if is_proxied else '127.0.0.1'}:{secure.port}/v1"
        run = ask(program, url, "-r0", HTTPS_PROXY=proxy.url)
    check_ended(run, url.split("/")[2], "certificate", "name its certificate in $SSL_CERT_FILE")


def test_a_certificate_file_that_is_not_there_is_named(program: Programs, tls: ssl.SSLContext) -> None:
    with Relay(tls=tls) as secure:
        run = ask(program, f"https://127.0.0.1:{secure.port}/v1", "-r0", SSL_CERT_FILE="/nowhere/ca.pem")
    check_ended(run, "certificate", "$SSL_CERT_FILE names '/nowhere/ca.pem', which cannot be read")


def test_a_certificate_for_another_name_is_one_plain_line(
    program: Programs, certificate: Path, tls: ssl.SSLContext
) -> None:
    with Proxy() as proxy, Relay(tls=tls) as secure:
        environ = {"HTTPS_PROXY": proxy.url, "SSL_CERT_FILE": str(certificate / "cert.pem")}
        run = ask(program, f"https://another.test:{secure.port}/v1", "-r0", **environ)
    check_ended(run, "certificate", "another.test", "give -u with a name that the certificate is for")
    assert "SSL_CERT_FILE" not in run.said[0]


def test_a_server_without_tls_asked_with_it_is_one_plain_line(program: Programs) -> None:
    with NoTls() as plain:
        check_ended(
            ask(program, f"https://127.0.0.1:{plain.port}/v1"), f"127.0.0.1:{plain.port}", "TLS", "give http://"
        )


def test_a_server_with_tls_asked_without_it_ends_the_run_at_its_second_row(
    program: Programs, tls: ssl.SSLContext
) -> None:
    way_out = "check -u (or $OPENAI_BASE_URL), and whether it begins with http:// or https://"
    with Relay(tls=tls) as secure:
        run = ask(program, f"http://127.0.0.1:{secure.port}/v1", "-r0")
    (line,) = run.errors  # one row alone may be what breaks a connection
    assert (run.status, line["line"]) == (3, 1)
    assert way_out in line["message"] and way_out in run.said[0]


def test_what_never_was_sent_is_not_counted(program: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    run = ask(program, url, "-r1", "--stats", "stats.json")
    check_ended(run, "Connection refused")
    stats = json.loads((program.folder / "stats.json").read_text())
    assert (stats["requests"], stats["retries"]) == (0, 0)


# Names, addresses, URLs


def test_a_name_that_does_not_exist_is_one_plain_line(program: Programs) -> None:
    check_ended(ask(program, "http://no-such-host.invalid:9/v1", "-r0"), "no-such-host.invalid:9")


def test_an_ipv6_address_in_a_url(program: Programs, server: Server) -> None:
    if not knows_ipv6():
        pytest.skip("this machine has no ::1")
    with Relay(server.port, host="::1") as relay:
        check_answered(ask(program, f"http://[::1]:{relay.port}/v1", ALL_PROXY="http://127.0.0.1:9"))
    assert server.requests[0].headers["host"] == f"[::1]:{relay.port}"


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("/", "/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/gateway/team%20a/v1/", "/gateway/team%20a/v1/chat/completions"),
        ("/v1?sig=a%2Fb%2Bc&d", "/v1/chat/completions?sig=a%2Fb%2Bc&d"),
    ],
)
def test_base_urls_of_all_sorts(program: Programs, server: Server, given: str, asked: str) -> None:
    with Proxy() as proxy:
        for host in ("127.0.0.1", NAME):
            check_answered(ask(program, f"http://{host}:{server.port}{given}", HTTP_PROXY=proxy.url))
    assert [request.path for request in server.requests] == [asked] * 6
    assert len(proxy.asked) == 3


@pytest.mark.parametrize(("status", "host"), [(307, "127.0.0.1"), (302, NAME)], ids=["direct", "proxy"])
def test_a_redirect_is_refused_and_its_target_named(program: Programs, server: Server, status: int, host: str) -> None:
    target = f"http://{host}:{server.port}/elsewhere"
    redirect = Response(b"", status, {"Location": target})
    server.answer = lambda request: redirect if request.path.startswith("/v1") else echo(request)
    with Proxy() as proxy:
        run = ask(program, f"http://{host}:{server.port}/v1", HTTP_PROXY=proxy.url)
    assert run.status == 1
    assert run.errors[0]["status"] == status
    assert f"redirected to {target}" in run.errors[0]["message"]
    assert "-u" in run.errors[0]["message"]
    assert len(server.requests) == 3  # one for each row, none for the target


# Headers


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (["user-agent: mine"], ["mine"]),
        (["content-type: application/json; v=2"], ["application/json; v=2"]),
        (["X-Tag: a", "x-tag: b"], ["a", "b"]),
    ],
)
def test_a_typed_header_replaces_our_own_and_two_of_one_name_are_both_sent(
    program: Programs, typed: list[str], sent: list[str]
) -> None:
    with Listener() as listener:
        args = [each for header in typed for each in ("-H", header)]
        check_answered(ask(program, f"http://127.0.0.1:{listener.port}/v1", *args))
    name = typed[0].partition(":")[0].lower()
    lines = [line.partition(":") for line in listener.head.split("\r\n")]
    assert [value.strip() for key, _, value in lines if key.lower() == name] == sent
