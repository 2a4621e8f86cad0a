"""Where requests go, and with which headers. Pure: the environment is handed in."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from llmfilter import __version__
from llmfilter.errors import UsageError

OPENAI = "https://api.openai.com/v1"
_PATH = "/chat/completions"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
# Shorter ones are dummies ("none", "EMPTY") and words of ordinary answers; masking would spoil those.
_SECRET_BYTES_LEAST = 8
_MASKED = b"[masked]"


@dataclass(frozen=True)
class Endpoint:
    """url: for chat requests; models_url: lists the models; headers: names and values, secrets included;
    mask: hides the secrets where a server echoes them; proxy: its URL, or None."""

    url: str
    models_url: str
    headers: Mapping[str, str] = field(repr=False)
    mask: "Mask" = field(repr=False)
    proxy: str | None = field(repr=False)


def make_endpoint(
    base_url: str | None, typed_headers: Sequence[str], environ: Mapping[str, str], needs_key: bool
) -> Endpoint:
    """The endpoint for `-u`, `-H` and the environment; raises UsageError naming what to mend."""
    source = "-u" if base_url else "$OPENAI_BASE_URL"
    parts = _split(base_url or environ.get("OPENAI_BASE_URL") or OPENAI, source)
    headers = {
        "User-Agent": f"llmfilter/{__version__}",
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
    }
    secrets: list[str] = []
    for typed in typed_headers:
        name, value = _expand(typed, environ, secrets)
        headers[name] = value
    key = environ.get("OPENAI_API_KEY", "").strip()
    if not {"authorization", "api-key"} & {name.lower() for name in headers}:
        if key:
            _check_value("$OPENAI_API_KEY", key)
            headers["Authorization"] = f"Bearer {key}"
            secrets.append(key)
        elif needs_key and not is_loopback(parts.hostname or ""):
            raise UsageError(
                f"no key for {parts.hostname}: set $OPENAI_API_KEY, or give -H 'Authorization: Bearer $MY_KEY'"
            )
    proxy = _proxy(parts, environ)
    if proxy and (password := urlsplit(proxy).password):
        secrets.append(unquote(password))
    base = parts._replace(path=parts.path.removesuffix(_PATH))
    return Endpoint(
        base._replace(path=base.path + _PATH).geturl(),
        base._replace(path=base.path + "/models").geturl(),
        headers,
        Mask([secret for secret in secrets if len(secret) >= _SECRET_BYTES_LEAST]),
        proxy,
    )


class Mask:
    """Hides secrets in what a server sent, also where JSON spells their characters as escapes."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._plain = [secret.encode() for secret in secrets]
        spellings = ["".join(map(_spellings, secret)) for secret in secrets]
        self._escaped = re.compile("|".join(spellings).encode()) if secrets else None

    def __call__(self, text: bytes) -> bytes:
        """The text with [masked] in their place."""
        for secret in self._plain:
            if secret in text:
                text = text.replace(secret, _MASKED)
        if self._escaped and b"\\" in text and (b"\\/" in text or b"\\u00" in text):
            text = self._escaped.sub(_MASKED, text)
        return text

    def text(self, text: str) -> str:
        """The same for text that was decoded already."""
        return self(text.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")


def _spellings(char: str) -> str:
    """A pattern for a character: as it is, or escaped, also in JSON within JSON."""
    return rf"(?:\\*{re.escape(char)}|\\+u(?i:{ord(char):04x}))"


def _split(url: str, source: str) -> SplitResult:
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise UsageError(f"{source}: no user or password in a URL; give -H 'Authorization: Basic $MY_SECRET'")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as fault:
        raise UsageError(f"{source} {url!r} is not a URL: {fault}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise UsageError(f"{source} {url!r} is not a URL like http://localhost:8000/v1")
    return parts._replace(path=parts.path.rstrip("/"), fragment="")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _expand(typed: str, environ: Mapping[str, str], secrets: list[str]) -> tuple[str, str]:
    name, colon, value = typed.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise UsageError(f"-H {name!r}: a header looks like 'Name: value'")

    def look_up(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in environ:
            raise UsageError(f"-H {name}: ${variable} is not set in the environment")
        secrets.append(environ[variable].strip())
        return environ[variable]

    value = _VARIABLE.sub(look_up, value).strip()
    _check_value(f"-H {name}", value)
    return name, value


def _check_value(source: str, value: str) -> None:
    if not value.isprintable():
        raise UsageError(f"{source}: the value holds a line break or another control character")


def _proxy(parts: SplitResult, environ: Mapping[str, str]) -> str | None:
    """The proxy that the environment names for a URL; a server on this machine is never behind one."""
    if is_loopback(parts.hostname or "") or not any(name.lower().endswith("_proxy") for name in environ):
        return None
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    names = sorted((name for name in environ if name.lower().endswith("_proxy")), key=str.islower)  # lower case wins
    proxies = {name.lower().removesuffix("_proxy"): environ[name] for name in names if environ[name]}
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass_environment(parts.netloc, proxies):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        scheme = proxy.partition(":")[0]
        raise UsageError(f"the environment names a {scheme} proxy for {parts.scheme}; only http proxies are known here")
    try:
        named = urlsplit(proxy)
        is_whole = bool(named.hostname) and (named.port or 80) > 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UsageError(f"the environment names a proxy for {parts.scheme} that is not a URL like http://proxy:3128")
    return proxy
