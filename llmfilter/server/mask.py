"""Secrets in what was typed, and in what a server says: found, and hidden. Pure."""

import re
from collections.abc import Sequence

# Shorter ones are dummies ("none", "EMPTY") and words of ordinary messages; masking would garble those.
_BYTES_LEAST = 8
# What was typed is a secret by the name of its header or parameter, or by its looks.
_NAME = re.compile(r"auth|cookie|key|pass|secret|sig|token", re.IGNORECASE)
_LOOKS = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])[\w.~+/=-]{20,}|sk-[\w-]{5,}")
_MASKED = b"[masked]"


def secrets_in(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is a credential of names and values that were typed."""
    return [secret for name, value in pairs for secret in ([value] if _NAME.search(name) else _LOOKS.findall(value))]


def hide_keys(text: str) -> str:
    """Return a text with [masked] in the place of what looks like a key."""
    return _LOOKS.sub(_MASKED.decode(), text)


class Mask:
    """Hides secrets in what an error says, also where JSON spells their characters as escapes.

    Each word of a secret is one, since a server may echo a key without its `Bearer`.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        words = {word.strip() for secret in secrets for word in (secret, *re.split(r"[\s,;=]+", secret))}
        longest_first = sorted(words, key=lambda word: (-len(word), word))
        hidden = [word for word in longest_first if len(word) >= _BYTES_LEAST]
        self._plain = [secret.encode() for secret in hidden]
        spellings = ["".join(map(_spellings, secret)) for secret in hidden]
        self._escaped = re.compile("|".join(spellings).encode()) if hidden else None

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
