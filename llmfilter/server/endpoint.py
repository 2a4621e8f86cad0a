"""Where requests go, and with which headers. Pure: the environment is handed in."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from llmfilter import __version__
from llmfilter.errors import UsageError
from llmfilter.server.hosts import check_host, is_loopback
from llmfilter.server.mask import Mask, hide_keys, secrets_in
from llmfilter.server.proxy import find_proxy

OPENAI = "https://api.openai.com/v1"
_PATH = "/chat/completions"
_AUTHORITY_END = re.compile(r"[/?#]")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)  # $5 is a price
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_OURS = {"User-Agent": f"llmfilter/{__version__}", "Content-Type": "application/json", "Accept-Encoding": "identity"}
_AUTHORIZING = {"authorization", "api-key"}  # with one of these no key is needed, and none is added
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
    mask: Mask = field(repr=False)
    proxy: str | None = field(repr=False)


def make_endpoint(
    base_url: str | None, typed_headers: Sequence[str], environ: Mapping[str, str], needs_key: bool
) -> Endpoint:
    """Return the endpoint for `-u`, `-H` and the environment; raise UsageError naming what is wrong."""
    source = "-u" if base_url else "$OPENAI_BASE_URL"
    parts = _split(base_url or environ.get("OPENAI_BASE_URL") or OPENAI, source)
    secrets = secrets_in(parse_qsl(parts.query))
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
    proxy = find_proxy(parts, environ)
    if proxy and (password := urlsplit(proxy).password):
        secrets += [unquote(password), password]
    base = parts._replace(path=parts.path.removesuffix(_PATH))
    return Endpoint(
        base._replace(path=base.path + _PATH).geturl(),
        base._replace(path=base.path + "/models").geturl(),
        # In one spelling each: aiohttp's session takes another for one that replaces the first.
        (*ours, *((names[name.lower()], value) for name, value in headers)),
        Mask(secrets),
        proxy,
    )


def _key(environ: Mapping[str, str]) -> str:
    key = environ.get("OPENAI_API_KEY", "").strip()
    _check_value("$OPENAI_API_KEY", key)
    if re.match(r"bearer\s", key, re.IGNORECASE):
        raise UsageError("$OPENAI_API_KEY begins with the word Bearer, which llmfilter adds itself: leave it out there")
    return key


def _split(url: str, source: str) -> SplitResult:
    if "@" in _AUTHORITY_END.split(url.partition("//")[2] or url)[0]:
        raise UsageError(f"{source}: no user or password in a URL; give -H 'Authorization: Basic $MY_SECRET'")
    shown = "" if "@" in url else f" {url!r}"  # perhaps a password with a slash in it
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
        host = check_host(parts.hostname or "")
    except ValueError as fault:
        why = f": {fault}" if shown else ""
        raise UsageError(f"{source}{shown} is not a URL{why}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise UsageError(f"{source}{shown} is not a URL like http://localhost:8000/v1")
    return parts._replace(path=parts.path.rstrip("/"), fragment="")


def _expand(typed: str, environ: Mapping[str, str], secrets: list[str]) -> tuple[str, str]:
    name, colon, value = typed.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise UsageError(f"-H {hide_keys(name)!r}: a header looks like 'Name: value'")
    if name.lower() in _FRAMING:
        raise UsageError(f"-H {name}: llmfilter sets this header itself; leave it out")

    def look_up(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in environ:
            raise UsageError(f"-H {name}: ${variable} is not set in the environment")
        secrets.append(environ[variable].strip())
        return environ[variable]

    secrets += secrets_in([(name, _VARIABLE.sub(" ", value))])
    value = _VARIABLE.sub(look_up, value).strip()
    _check_value(f"-H {name}", value)
    if not value and name.lower() in _AUTHORIZING:
        raise UsageError(f"-H {name}: the value is empty; give a variable that is set, in single quotes")
    return name, value


def _check_value(source: str, value: str) -> None:
    if not value.isprintable():
        raise UsageError(f"{source}: the value holds a line break or another control character")
