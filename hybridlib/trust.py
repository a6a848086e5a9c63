"""What comes from outside and is not trusted: one exception that refuses it, and a seal that proves who made it.

Checksums find accidents; anyone can compute them anew. A seal is made with a key that sender and receiver share:
HMAC-SHA256 of the standard library (RFC 2104), which proves origin and integrity without a nonce that could be used
twice. It hides nothing, and a sealed message that is sent again is as good as the first time: whoever must not accept
it twice, or in another order, has to count.
"""

from __future__ import annotations

import hashlib
import hmac
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

KEY_BYTES = 32  # at least, as RFC 2104 advises for SHA-256; `secrets.token_bytes(32)` makes one
_MAGIC = b"HLK\x01"
_TAG_BYTES = hashlib.sha256().digest_size
SEAL_BYTES = len(_MAGIC) + _TAG_BYTES

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict, _short.maxset = 2, 24, 24, 8, 8
_short.maxstring = _short.maxother = _short.maxlong = 120


class InvalidInput(ValueError):
    """A message, state, table, image, prompt set or parameter file is refused; the text is one sentence on why."""


@contextmanager
def refusing(source: str = "") -> Iterator[None]:
    """Turns a ValueError of what is read inside into `InvalidInput`, its sentence behind `source`; also a decorator."""
    try:
        yield
    except InvalidInput:
        raise
    except ValueError as error:
        raise InvalidInput(f"{source}{error}") from None


def reason(error: BaseException) -> str:
    """What a foreign library's exception says, on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def shown(value: object) -> str:
    """A value from outside as a sentence may show it, however large or deep it is."""
    try:
        return _short.repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return f"a {type(value).__name__} too long to show"


def seal(data: bytes, key: bytes | None) -> bytes:
    """The data behind a seal of `SEAL_BYTES`; as they are if the key is None.

    Raises:
        TypeError: if the key is no bytes.
        ValueError: if it has fewer than `KEY_BYTES`. No sentence ever shows a key.
    """
    return data if key is None else _MAGIC + _tag(data, key) + data


def unseal(data: bytes, key: bytes | None, source: str = "the data") -> bytes:
    """Inverse of `seal`: what the holder of the key sealed, unchanged.

    Raises:
        TypeError, ValueError: if the key is no key, as `seal`.
        InvalidInput: if there is no seal, or it is of another key or of other data; and without a key, if there is one.
    """
    if not data.startswith(_MAGIC):
        if key is not None:
            _check_key(key)
            raise InvalidInput(f"{source} has no seal, and only what is sealed by the key is accepted")
        return data
    if key is None:
        raise InvalidInput(f"{source} is sealed: it is read only with the key that sealed it")
    tag, content = data[len(_MAGIC) : SEAL_BYTES], data[SEAL_BYTES:]
    if not hmac.compare_digest(tag, _tag(content, key)):  # takes as long wherever the first difference is
        raise InvalidInput(f"{source} was sealed by another key, or altered since")
    return content


def _tag(data: bytes, key: bytes) -> bytes:
    _check_key(key)
    code = hmac.new(key, _MAGIC, hashlib.sha256)
    code.update(data)
    return code.digest()


def _check_key(key: object) -> None:
    if not isinstance(key, bytes):
        raise TypeError(f"key must be bytes, got {type(key).__name__}")
    if len(key) < KEY_BYTES:
        raise ValueError(f"key must have at least {KEY_BYTES} bytes, got {len(key)}")
