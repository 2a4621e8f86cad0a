"""TLS where an endpoint needs it, and only there: aiohttp gets two contexts ready while it is loaded (13 to 42 ms)."""

import sys

from llmfilter.server.endpoint import Endpoint


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


def needs_tls(endpoint: Endpoint) -> bool:
    """Return whether a server, or the proxy before it, is spoken to in TLS."""
    return any(url.lower().startswith("https:") for url in (endpoint.url, endpoint.proxy or ""))
