"""Where requests go, and with which headers. Pure: the environment is handed in."""

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from llmfilter import __version__
from llmfilter.errors import UsageError

OPENAI = "https://api.openai.com/v1"
_PATH = "/chat/completions"
_AUTHORITY_END = re.compile(r"[/?#]")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)  # $5 is a price
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
# Shorter ones are dummies ("none", "EMPTY") and words of ordinary messages; masking would garble those.
_SECRET_BYTES_LEAST = 8
# What was typed is a secret by the name of its header or parameter, or by its looks.
_SECRET_NAME = re.compile(r"auth|cookie|key|pass|secret|sig|token", re.IGNORECASE)
_SECRET_LOOKS = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])[\w.~+/=-]{20,}|sk-[\w-]{5,}")
_MASKED = b"[masked]"
_OURS = {"User-Agent": f"llmfilter/{__version__}", "Content-Type": "application/json", "Accept-Encoding": "identity"}
_AUTHORIZING = {"authorization", "api-key"}  # with one of these no key is needed, and none is added
_UNSPECIFIED = ("0.0.0.0", "::")  # needs no key, but $NO_PROXY may leave it to a proxy
_FRAMING = ("content-length", "transfer-encoding")


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    url: for chat requests.
    models_url: lists the models.
    headers: all but Host and Content-Length, secrets included; a name may come several times.
    mask: hides the secrets where an error echoes them.
    proxy: its URL, or None.
    """

    url: str
    models_url: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    mask: "Mask" = field(repr=False)
    proxy: str | None = field(repr=False)


def make_endpoint(
    base_url: str | None, typed_headers: Sequence[str], environ: Mapping[str, str], needs_key: bool
) -> Endpoint:
    """Return the endpoint for `-u`, `-H` and the environment; raise UsageError naming what is wrong."""
    source = "-u" if base_url else "$OPENAI_BASE_URL"
    parts = _split(base_url or environ.get("OPENAI_BASE_URL") or OPENAI, source)
    secrets = _typed_secrets(parse_qsl(parts.query))
    headers = [_expand(typed, environ, secrets) for typed in typed_headers]
    names = {name.lower(): name for name, _ in headers}
    ours = [(name, value) for name, value in _OURS.items() if name.lower() not in names]
    if not _AUTHORIZING & names.keys():
        key = _key(environ)
        if key:
            ours.append(("Authorization", f"Bearer {key}"))
            secrets.append(key)
        elif needs_key and not is_loopback(parts.hostname or ""):
            raise UsageError(
                f"no key for {parts.hostname}: set $OPENAI_API_KEY, or give -H 'Authorization: Bearer $MY_KEY'"
            )
    proxy = _proxy(parts, environ)
    if proxy and (password := urlsplit(proxy).password):
        secrets += [unquote(password), password]
    base = parts._replace(path=parts.path.removesuffix(_PATH))
    return Endpoint(
        base._replace(path=base.path + _PATH).geturl(),
        base._replace(path=base.path + "/models").geturl(),
        # In one spelling each: aiohttp's session takes another for one that replaces the first.
        (*ours, *((names[name.lower()], value) for name, value in headers)),
        Mask(_parts_of(secrets)),
        proxy,
    )


class Mask:
    """Hides secrets in what an error says, also where JSON spells their characters as escapes."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._plain = [secret.encode() for secret in secrets]
        spellings = ["".join(map(_spellings, secret)) for secret in secrets]
        self._escaped = re.compile("|".join(spellings).encode()) if secrets else None

    def __call__(self, text: bytes) -> bytes:
        """Return the text with [masked] in their place."""
        for secret in self._plain:
            if secret in text:
                text = text.replace(secret, _MASKED)
        if self._escaped and b"\\" in text and (b"\\/" in text or b"\\u00" in text):
            text = self._escaped.sub(_MASKED, text)
        return text

    def text(self, text: str) -> str:
        """Return the same for text that was decoded already; lone surrogates become replacement characters."""
        return self(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")


def _spellings(char: str) -> str:
    """Return a pattern for a character: as it is, or escaped, also in JSON within JSON."""
    return rf"(?:\\*{re.escape(char)}|\\+u(?i:{ord(char):04x}))"


def _key(environ: Mapping[str, str]) -> str:
    key = environ.get("OPENAI_API_KEY", "").strip()
    _check_value("$OPENAI_API_KEY", key)
    if re.match(r"bearer\s", key, re.IGNORECASE):
        raise UsageError("$OPENAI_API_KEY begins with the word Bearer, which llmfilter adds itself: leave it out there")
    return key


def _typed_secrets(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is a credential of names and values that were typed."""
    return [
        secret
        for name, value in pairs
        for secret in ([value] if _SECRET_NAME.search(name) else _SECRET_LOOKS.findall(value))
    ]


def _parts_of(secrets: Sequence[str]) -> list[str]:
    """Return secrets, and their words, since a server may echo a key without its `Bearer`; the longest first."""
    words = [word.strip() for secret in secrets for word in (secret, *re.split(r"[\s,;=]+", secret))]
    return sorted({word for word in words if len(word) >= _SECRET_BYTES_LEAST}, key=lambda word: (-len(word), word))


def _split(url: str, source: str) -> SplitResult:
    if "@" in _AUTHORITY_END.split(url.partition("//")[2] or url)[0]:
        raise UsageError(f"{source}: no user or password in a URL; give -H 'Authorization: Basic $MY_SECRET'")
    shown = "" if "@" in url else f" {url!r}"  # perhaps a password with a slash in it
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
        host = _check_host(parts.hostname or "")
    except ValueError as fault:
        why = f": {fault}" if shown else ""
        raise UsageError(f"{source}{shown} is not a URL{why}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise UsageError(f"{source}{shown} is not a URL like http://localhost:8000/v1")
    return parts._replace(path=parts.path.rstrip("/"), fragment="")


def _check_host(host: str) -> str:
    """Return the host if a resolver would take it; raise ValueError otherwise."""
    ascii_host = host if host.isascii() else host.encode("idna").decode()
    if any(not 0 < len(label) < 64 for label in ascii_host.removesuffix(".").split(".")) and host:
        raise ValueError(f"the host {host!r} has an empty or too long part between its dots")
    return host


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, in any spelling that a resolver takes: 127.1, 0.0.0.0, localhost. too."""
    host = host.removesuffix(".")
    try:
        address = ipaddress.ip_address(host if ":" in host else socket.inet_aton(host))
    except (OSError, ValueError):
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified  # Linux takes the latter for itself


def _expand(typed: str, environ: Mapping[str, str], secrets: list[str]) -> tuple[str, str]:
    name, colon, value = typed.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise UsageError(f"-H {_SECRET_LOOKS.sub('[masked]', name)!r}: a header looks like 'Name: value'")
    if name.lower() in _FRAMING:
        raise UsageError(f"-H {name}: llmfilter sets this header itself; leave it out")

    def look_up(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in environ:
            raise UsageError(f"-H {name}: ${variable} is not set in the environment")
        secrets.append(environ[variable].strip())
        return environ[variable]

    secrets += _typed_secrets([(name, _VARIABLE.sub(" ", value))])
    value = _VARIABLE.sub(look_up, value).strip()
    _check_value(f"-H {name}", value)
    if not value and name.lower() in _AUTHORIZING:
        raise UsageError(f"-H {name}: the value is empty; give a variable that is set, in single quotes")
    return name, value


def _check_value(source: str, value: str) -> None:
    if not value.isprintable():
        raise UsageError(f"{source}: the value holds a line break or another control character")


def _proxy(parts: SplitResult, environ: Mapping[str, str]) -> str | None:
    """Return the proxy that the environment names for a URL; a server on this machine is never behind one."""
    is_direct = is_loopback(parts.hostname or "") and parts.hostname not in _UNSPECIFIED
    if is_direct or not any(name.lower().endswith("_proxy") for name in environ):
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
        is_whole = bool(_check_host(named.hostname or "")) and (named.port or 80) > 0 and proxy.isprintable()
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UsageError(f"the environment names a proxy for {parts.scheme} that is not a URL like http://proxy:3128")
    return proxy
