"""endpoint: where requests go, with which headers, through which proxy."""

import os
from collections.abc import Callable

import pytest

from llmfilter import __version__
from llmfilter.errors import UsageError
from llmfilter.server.endpoint import Endpoint, make_endpoint
from llmfilter.server.hosts import is_loopback

OURS = [
    ("User-Agent", f"llmfilter/{__version__}"),
    ("Content-Type", "application/json"),
    ("Accept-Encoding", "identity"),
]
KEY = "sk-0123456789abcdef"


def make(url: str | None = None, *headers: str, needs_key: bool = True, **environ: str) -> Endpoint:
    return make_endpoint(url, headers, environ, needs_key)


def headers_of(endpoint: Endpoint) -> dict[str, str]:
    """Those beside the ones that each request has."""
    return {name: value for name, value in endpoint.headers if (name, value) not in OURS}


def complaint(url: str | None = None, *headers: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        make_endpoint(url, headers, environ, needs_key=True)
    return str(caught.value)


# URLs


@pytest.mark.parametrize(
    ("given", "url", "models_url"),
    [
        (None, "https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1/models"),
        ("http://h:8000/v1", "http://h:8000/v1/chat/completions", "http://h:8000/v1/models"),
        ("http://h:8000/v1/", "http://h:8000/v1/chat/completions", "http://h:8000/v1/models"),
        ("http://h:8000", "http://h:8000/chat/completions", "http://h:8000/models"),
        ("http://h:8000/", "http://h:8000/chat/completions", "http://h:8000/models"),
        ("https://h/llm/eu/v1", "https://h/llm/eu/v1/chat/completions", "https://h/llm/eu/v1/models"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions", "https://h/v1/models"),
        ("https://h/v1/chat/completions/", "https://h/v1/chat/completions", "https://h/v1/models"),
        ("https://h/v1?tier=a&b=%2F", "https://h/v1/chat/completions?tier=a&b=%2F", "https://h/v1/models?tier=a&b=%2F"),
        ("https://h?tier=a", "https://h/chat/completions?tier=a", "https://h/models?tier=a"),
        (
            "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/models?api-version=2024-10-21",
        ),
        (
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/models?api-version=2024-10-21",
        ),
        (
            "https://r.openai.azure.com/openai/v1/",
            "https://r.openai.azure.com/openai/v1/chat/completions",
            "https://r.openai.azure.com/openai/v1/models",
        ),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1/chat/completions", "http://[::1]:8080/v1/models"),
        ("HTTPS://h/v1", "https://h/v1/chat/completions", "https://h/v1/models"),
        ("http://h/a%20b/v1", "http://h/a%20b/v1/chat/completions", "http://h/a%20b/v1/models"),
    ],
)
def test_where_requests_go(given: str | None, url: str, models_url: str) -> None:
    endpoint = make(given, OPENAI_API_KEY=KEY)
    assert (endpoint.url, endpoint.models_url) == (url, models_url)


def test_the_environment_names_the_server_unless_u_does() -> None:
    assert make(OPENAI_BASE_URL="http://localhost:1/v1").url == "http://localhost:1/v1/chat/completions"
    assert make("http://localhost:2", OPENAI_BASE_URL="http://localhost:1").url == "http://localhost:2/chat/completions"
    assert make("", OPENAI_BASE_URL="", OPENAI_API_KEY=KEY).url == "https://api.openai.com/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "/v1",
        "api.openai.com/v1",
        "http://",
        "http:///v1",
        "ftp://h/v1",
        "http://h:port/v1",
        "http://h:99999/v1",
        "http://[::1/v1",
        "http://h/v 1",
        "http://h/v1\n",
        "http://h/\x1b[31m",
        "http://a..b/v1",
        "http://.a/v1",
        "http://a.b../v1",
        "http://é..b/v1",
        f"http://{'a' * 64}.b/v1",
    ],
)
def test_what_is_no_url_is_a_usage_error(url: str) -> None:
    message = complaint(url, OPENAI_API_KEY=KEY)
    assert message.startswith("-u ")
    assert message.isprintable()
    assert complaint(OPENAI_BASE_URL=url, OPENAI_API_KEY=KEY).startswith("$OPENAI_BASE_URL ")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter22@h/v1",
        "http://hunter22@h/v1",
        "http://me:hunter22@h:x/v1",
        "ftp://me:hunter22@h",
        "me:hunter22@h/v1",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    message = complaint(url, OPENAI_API_KEY=KEY)
    assert "hunter22" not in message
    assert "-H" in message


@pytest.mark.parametrize("url", ["//me:hunter22@h/v1", "me:hunt/er22@h/v1", "h:me/hunter22@h", "http://me:hunter22/@h"])
def test_a_password_at_an_odd_place_is_not_repeated(url: str) -> None:
    assert "er22" not in complaint(OPENAI_BASE_URL=url, OPENAI_API_KEY=KEY)


def test_a_host_may_end_with_a_dot_and_a_path_hold_an_at() -> None:
    url = "https://api.example.com./@me/v1"
    assert make(url, OPENAI_API_KEY=KEY).models_url == f"{url}/models"


# Keys and headers


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("app.localhost", True),
        ("127.1", True),
        ("2130706433", True),
        ("0x7f.1", True),
        ("localhost.", True),
        ("127.0.0.1.", True),
        ("0.0.0.0", True),
        ("::", True),
        ("128.1", False),
        ("10.0.0.1", False),
        ("::2", False),
        ("localhost.example.com", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_which_hosts_are_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1"])
def test_a_server_on_this_machine_needs_no_key_but_gets_one_that_is_there(url: str) -> None:
    assert list(make(url).headers) == OURS
    assert headers_of(make(url, OPENAI_API_KEY=KEY)) == {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": ""}, {"OPENAI_API_KEY": " \n"}])
def test_another_server_needs_a_key(environ: dict[str, str]) -> None:
    message = complaint("https://api.example.com/v1", **environ)
    assert "api.example.com" in message
    assert "$OPENAI_API_KEY" in message


def test_a_dry_run_needs_no_key() -> None:
    assert list(make("https://api.example.com/v1", needs_key=False).headers) == OURS


@pytest.mark.parametrize("name", ["Authorization", "authorization", "API-Key", "api-key"])
def test_a_header_that_authorizes_takes_the_keys_place(name: str) -> None:
    endpoint = make("https://h", f"{name}: Basic $MINE", MINE="dXNlcjpwdw", OPENAI_API_KEY=KEY)
    assert headers_of(endpoint) == {name: "Basic dXNlcjpwdw"}


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("X-A: b", "X-A", "b"),
        ("X-A:b: c ", "X-A", "b: c"),
        ("X-A:", "X-A", ""),
        ("X-A: $V", "X-A", "val$W"),
        ("X-A: ${V}2-$W$W", "X-A", "val$W2-ww"),
        ("X-A: Bearer $V.$W", "X-A", "Bearer val$W.w"),
        ("X-A: 5$ $ ${} $-", "X-A", "5$ $ ${} $-"),
        ("X-A: $5 ${5} $V", "X-A", "$5 ${5} val$W"),
        ("X-A: $PADDED", "X-A", "padded"),
        ("x!#$%&'*+-.^_`|~9: b", "x!#$%&'*+-.^_`|~9", "b"),
    ],
)
def test_headers_are_expanded_once(typed: str, name: str, value: str) -> None:
    endpoint = make("http://localhost", typed, V="val$W", W="w", PADDED=" padded\n")
    assert headers_of(endpoint) == {name: value}


@pytest.mark.parametrize("own", OURS)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_a_header_replaces_the_one_that_is_built(own: tuple[str, str], spell: Callable[[str], str]) -> None:
    name = spell(own[0])
    assert {*make("http://localhost", f"{name}: mine").headers} == {*OURS, (name, "mine")} - {own}


def test_headers_of_one_name_are_all_sent() -> None:
    headers = make("http://localhost", "X-A: 1", "x-a: 2", "X-A: 1").headers
    assert list(headers) == [*OURS, ("X-A", "1"), ("X-A", "2"), ("X-A", "1")]


@pytest.mark.parametrize("typed", ["Content-Length:", "content-length: 5", "Transfer-Encoding: chunked"])
def test_what_frames_a_request_is_not_the_users_to_set(typed: str) -> None:
    assert "sets this header itself" in complaint("http://localhost", typed)


@pytest.mark.parametrize("typed", ["X-A", ": b", "X A: b", "X-A : b", "Ä: b", "X\n: b", ""])
def test_what_is_no_header_is_a_usage_error(typed: str) -> None:
    assert "'Name: value'" in complaint("http://localhost", typed)


def test_a_variable_that_is_not_set_is_named() -> None:
    assert "$MY_KEY" in complaint("http://localhost", "X-A: $MY_KEY")


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\0", "\x7f"])
def test_a_line_break_in_a_secret_is_refused_without_repeating_it(break_: str) -> None:
    value = f"hunter22{break_}X-B: injected"
    for message in (
        complaint("http://localhost", "X-A: $V", V=value),
        complaint("http://localhost", OPENAI_API_KEY=value),
    ):
        assert "hunter22" not in message
        assert "control character" in message


# Secrets


def test_what_came_from_the_environment_is_masked_if_it_is_long_enough() -> None:
    endpoint = make("http://localhost", "X-A: typed-by-hand $LONG", "X-B: $SHORT", LONG="longsecret", SHORT="short")
    assert endpoint.mask(b"a longsecret") == b"a [masked]"
    assert make("http://localhost", OPENAI_API_KEY=f" {KEY}\n").mask(KEY.encode()) == b"[masked]"
    assert make("http://localhost", OPENAI_API_KEY="EMPTY").mask(b"EMPTY") == b"EMPTY"


def test_a_secret_is_masked_in_the_form_in_which_it_is_sent() -> None:
    endpoint = make("http://localhost", "X-A: $FROM_FILE", FROM_FILE="longsecret\n")
    assert (headers_of(endpoint), endpoint.mask(b"longsecret")) == ({"X-A": "longsecret"}, b"[masked]")


@pytest.mark.parametrize("text", ["bad \ud800", "\udc80\udfff", "\ud83d", f"\ud800{KEY}\udc80", ""])
@pytest.mark.parametrize("key", [KEY, ""])
def test_a_mask_takes_any_text(text: str, key: str) -> None:
    masked = make("http://localhost", OPENAI_API_KEY=key).mask.text(text)
    masked.encode()
    assert KEY not in masked or not key


BARE = "Zm9vYmFy-42"


@pytest.mark.parametrize(
    ("url", "typed", "environ"),
    [
        (None, ["Authorization: $AUTH"], {"AUTH": f"Bearer {BARE}"}),
        (None, ["Authorization: Bearer $MINE"], {"MINE": BARE}),
        (None, [f"Authorization: Bearer {BARE}"], {}),
        (None, [f"x-api-key:{BARE}"], {}),
        (None, [f"Cookie: session={BARE}; $REST"], {"REST": "theme=dark"}),
        (None, ["X: a-sk-live $X"], {"X": f"one {BARE}"}),
        (f"?api-version=2024-10-21&key={BARE}", [], {}),
        (f"?access_token={BARE.replace('-', '%2D')}", [], {}),
    ],
)
def test_a_bare_key_is_masked_wherever_it_came_from(url: str | None, typed: list[str], environ: dict[str, str]) -> None:
    mask = make_endpoint(f"http://localhost/v1{url or ''}", typed, environ, needs_key=True).mask
    assert mask(f"bad key {BARE}, sent Bearer {BARE}: api-version 2024-10-21".encode()) in (
        b"bad key [masked], sent Bearer [masked]: api-version 2024-10-21",
        b"bad key [masked], sent [masked]: api-version 2024-10-21",
    )


@pytest.mark.parametrize("secret", ["sk-4f3d2c1b", "gsk_0123456789abcdefghij", "eyJhbGciOi.eyJzdWIiOiIx.S5f6lKxw"])
def test_what_looks_like_a_key_is_masked_in_any_header(secret: str) -> None:
    assert secret not in make("http://localhost", f"X: {secret}").mask(f"no {secret}".encode()).decode()
    assert secret not in complaint("http://localhost", f"Bearer {secret}")


def test_ordinary_words_of_a_header_are_not_masked() -> None:
    mask = make("http://localhost/v1?api-version=2024-10-21-preview", "X-Team: text-classification").mask
    assert mask(b"no text-classification 2024-10-21-preview") == b"no text-classification 2024-10-21-preview"


@pytest.mark.parametrize("key", ["Bearer sk-0123456789", "bearer\tsk-0123456789"])
def test_a_key_with_the_word_bearer_is_refused_and_not_repeated(key: str) -> None:
    message = complaint("http://localhost", OPENAI_API_KEY=key)
    assert "$OPENAI_API_KEY begins with the word Bearer" in message or "control character" in message
    assert "sk-" not in message


@pytest.mark.parametrize("typed", ["Authorization:", "api-key: $EMPTY"])
def test_an_empty_authorization_is_refused(typed: str) -> None:
    assert "empty" in complaint("http://localhost", typed, EMPTY="")


def test_an_endpoint_does_not_show_its_secrets() -> None:
    shown = repr(make("http://localhost", "X-A: $LONG", LONG="longsecret", OPENAI_API_KEY=KEY))
    assert "longsecret" not in shown
    assert KEY not in shown


# Proxies


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://h/v1", {}, None),
        ("https://h/v1", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://h/v1", {"https_proxy": "http://p:3128"}, "http://p:3128"),
        ("https://h/v1", {"HTTPS_PROXY": "p:3128"}, "http://p:3128"),
        ("https://h/v1", {"HTTPS_PROXY": "https://p"}, "https://p"),
        ("https://h/v1", {"https_proxy": "http://low", "HTTPS_PROXY": "http://up"}, "http://low"),
        ("https://h/v1", {"HTTP_PROXY": "http://p"}, None),
        ("http://h/v1", {"http_proxy": "http://p"}, "http://p"),
        ("https://h/v1", {"ALL_PROXY": "http://p"}, "http://p"),
        ("https://h/v1", {"ALL_PROXY": "socks5://s", "HTTPS_PROXY": "http://p"}, "http://p"),
        ("https://h/v1", {"HTTPS_PROXY": ""}, None),
        ("https://h/v1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "h"}, None),
        ("https://a.h.org:8443/v1", {"HTTPS_PROXY": "http://p", "no_proxy": "x, .h.org"}, None),
        ("https://h.org/v1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("https://notok/v1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "ok"}, "http://p"),
        ("http://localhost:8000", {"http_proxy": "http://p"}, None),
        ("http://127.0.0.1:8000", {"ALL_PROXY": "socks5h://s"}, None),
        ("http://[::1]:8000", {"ALL_PROXY": "http://p"}, None),
    ],
)
def test_the_environments_proxy_is_used_except_for_this_machine(
    url: str, environ: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environ(monkeypatch, environ)
    assert make_endpoint(url, [], os.environ, needs_key=False).proxy == proxy


@pytest.mark.parametrize("name", ["all_proxy", "ALL_PROXY", "HTTPS_PROXY"])
def test_a_proxy_of_another_kind_is_named_without_its_password(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environ(monkeypatch, {name: "socks5://me:hunter22@s:1080"})
    with pytest.raises(UsageError, match="socks5") as caught:
        make_endpoint("https://h/v1", [], os.environ, needs_key=False)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["http://a..b:3128", "http://p:port", "http://", "http://p\udcff", "http://u:\udcff@p"]
)
def test_a_proxy_that_is_no_url_is_a_usage_error(proxy: str) -> None:
    message = complaint("https://h/v1", OPENAI_API_KEY=KEY, ALL_PROXY=proxy)
    assert message == "the environment names a proxy for https that is not a URL like http://proxy:3128"


def test_only_the_environment_handed_in_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environ(monkeypatch, {"HTTPS_PROXY": "http://real"})
    assert make("https://h/v1", needs_key=False, HTTPS_PROXY="http://given").proxy == "http://given"


def set_environ(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    """The process's own environment: the standard library reads the proxies there."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
