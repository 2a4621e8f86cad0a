"""What can go wrong below HTTP, in our words; and names that are looked up without holding anybody up."""

import asyncio
import contextlib
import os
import re
import socket
import ssl
import threading
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http import HttpProcessingError

from llmfilter.api import faults
from llmfilter.errors import CHECK_URL, Retryable, RunError
from llmfilter.words import printable

CONNECT_S = 30.0
# A connection that waits for an answer is remembered by the firewalls and routers on its way, and a peer that is
# gone is noticed after 90 s: first probe, seconds between probes, how many.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
# What OpenSSL finds in an answer that is no TLS, depending on its version.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
_TLS_ALERT = re.compile(r"\[SSL: \w+\] (?:ssl/tls |sslv3 |tlsv\d+ )?(.+?)(?: \(_ssl\.c:\d+\))?\]?$")
# X509_V_ERR_*, from OpenSSL's x509_vfy.h.
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}


def classify(error: BaseException) -> Retryable | RunError:
    """Return an error of aiohttp or a socket as one of ours. It quotes nothing that the server sent."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return faults.classify_proxy(error.status, error.message)
    if isinstance(error, aiohttp.ClientConnectorError):
        return _classify_connect(error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return _broken("the server closed the connection without an answer")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Retryable("network", "the connection broke within the answer")
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        what = re.split("[:\"\n]|(?<!\\w)'", error.message)[0]  # behind it aiohttp quotes the server
        return Retryable("network", f"the answer is not valid HTTP: {printable(what)}")
    if isinstance(error, TimeoutError):
        return Retryable("network", f"cannot connect within {CONNECT_S:g} s", is_unreachable=True)
    words = _words(error) if isinstance(error, OSError) else str(error)
    return _broken(printable(f"the connection broke: {words or type(error).__name__}"))


def _broken(message: str) -> Retryable:
    # What speaks the one often closes without a word on the other.
    advice = f"{CHECK_URL}, and whether it begins with http:// or https://"
    return Retryable("network", message, is_dropped=True, advice=advice)


def _classify_connect(error: aiohttp.ClientConnectorError) -> Retryable | RunError:
    fault = error.os_error
    is_proxy = isinstance(error, aiohttp.ClientProxyConnectionError)
    words = printable(f"cannot connect to {'the proxy ' if is_proxy else ''}{error.host}:{error.port}:") + " "
    if isinstance(fault, ssl.SSLCertVerificationError):
        why = f"{words}its certificate: {printable(fault.verify_message)}"
        return Retryable("network", why, is_unreachable=True, advice=_advice(fault) or CHECK_URL)
    if isinstance(fault, ssl.SSLError) and fault.reason in _NO_TLS:  # it will speak none the next time either
        return RunError(f"the server can't be reached: {words}it does not speak TLS: give http://, not https://")
    return Retryable("network", f"{words}{printable(_words(fault))}", is_unreachable=True)


def _words(fault: OSError) -> str:
    """Return what has gone wrong with a connection."""
    if alert := _TLS_ALERT.search(str(fault)):  # its number is none of the system's
        return f"TLS: {alert[1]}"
    # The event loop's own words name the address again.
    return os.strerror(fault.errno) if fault.errno and fault.errno > 0 else fault.strerror or str(fault)


def _advice(fault: ssl.SSLCertVerificationError) -> str:
    if fault.verify_code in _OTHER_NAME:
        return "give -u with a name that the certificate is for"
    if fault.verify_code not in _UNKNOWN_AUTHORITY:
        return ""
    path = os.environ.get("SSL_CERT_FILE")  # OpenSSL reads it, and says nothing
    if path and not os.access(path, os.R_OK):
        return printable(f"$SSL_CERT_FILE names {path!r}, which cannot be read")
    return "if its authority is your own, name its certificate in $SSL_CERT_FILE"


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for what `getaddrinfo` says, kept alive by TCP itself."""
    family, kind, proto, *_ = address
    opened = socket.socket(family, kind, proto)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if option := getattr(socket, name, None):  # macOS calls the first one TCP_KEEPALIVE
            opened.setsockopt(socket.IPPROTO_TCP, option, value)
    return opened


class Resolver(AbstractResolver):
    """Looks a name up in a thread, which neither a stop nor the program's end waits for."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return a name's addresses; raise OSError."""
        loop = asyncio.get_running_loop()
        found = loop.create_future()

        def tell(addresses: Any, error: Exception | None) -> None:
            if found.done():
                return
            if error:
                found.set_exception(error)
            else:
                found.set_result(addresses)

        def look_up() -> None:
            addresses, error = None, None
            try:
                addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            except (OSError, UnicodeError) as fault:
                error = fault
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(tell, addresses, error)

        threading.Thread(target=look_up, daemon=True).start()
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=family, proto=proto, flags=0)
            for family, _, proto, _, address in await found
        ]

    async def close(self) -> None:
        """Nothing is to be closed."""
