"""TLS where an endpoint needs it, and only there: aiohttp gets two contexts ready while it is loaded (10 to 40 ms)."""

import sys
from collections.abc import Mapping

from llmfilter.errors import UsageError
from llmfilter.server.endpoint import Endpoint
from llmfilter.words import printable


def load_aiohttp(endpoint: Endpoint) -> None:
    """Load aiohttp for one endpoint; to be called before a module that imports it.

    Without TLS it is loaded as it is where Python was built without `ssl`, which it is made for.
    """
    ssl = sys.modules.get("ssl")
    if ssl and not needs_tls(endpoint):
        sys.modules["ssl"] = None  # type: ignore[assignment]  # to import it is an ImportError now
    try:
        import aiohttp  # noqa: F401
    finally:
        if ssl:
            sys.modules["ssl"] = ssl


def check_key_log(endpoint: Endpoint, environ: Mapping[str, str]) -> None:
    """Raise UsageError where the file that Python writes the keys of TLS to can't be written."""
    path = environ.get("SSLKEYLOGFILE")
    if path and needs_tls(endpoint):
        try:
            open(path, "a").close()
        except OSError as fault:
            raise UsageError(f"$SSLKEYLOGFILE: {printable(path)}: {fault.strerror}: name another file") from None


def needs_tls(endpoint: Endpoint) -> bool:
    """Return whether a server, or the proxy before it, is spoken to in TLS."""
    return any(url.lower().startswith("https:") for url in (endpoint.url, endpoint.proxy or ""))
