"""The proxy that the environment names for a URL. Pure: the environment is handed in."""

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from llmfilter.errors import UsageError
from llmfilter.server.hosts import check_host, is_loopback

_UNSPECIFIED = ("0.0.0.0", "::")  # this machine, but $NO_PROXY may leave it to a proxy


def find_proxy(parts: SplitResult, environ: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for a URL, or None; a server on this machine is never behind one.

    Raise UsageError where it is none that is known here.
    """
    host = parts.hostname or ""
    is_named = any(name.lower().endswith("_proxy") for name in environ)
    if not is_named or (is_loopback(host) and host not in _UNSPECIFIED):
        return None
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    names = sorted((name for name in environ if name.lower().endswith("_proxy")), key=str.islower)  # lower case wins
    proxies = {name.lower().removesuffix("_proxy"): environ[name] for name in names if environ[name]}
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass_environment(parts.netloc, proxies):
        return None
    return _check(proxy if "://" in proxy else f"http://{proxy}", parts.scheme)


def _check(proxy: str, scheme: str) -> str:
    if not proxy.startswith(("http://", "https://")):
        kind = proxy.partition(":")[0]
        raise UsageError(f"the environment names a {kind} proxy for {scheme}; only http proxies are known here")
    try:
        named = urlsplit(proxy)
        is_whole = bool(check_host(named.hostname or "")) and (named.port or 80) > 0 and proxy.isprintable()
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UsageError(f"the environment names a proxy for {scheme} that is not a URL like http://proxy:3128")
    return proxy
