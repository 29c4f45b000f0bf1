"""The body of a request: bounded while it is read, strictly JSON, and nothing that an answer could not hold."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NoReturn

from pinnace.runtime.server.failures import Refused

_HALF_OF_A_PAIR: Final = re.compile(rb"\\u[dD][89a-fA-F]")
# Far beyond any request that is meant, and far from where Python itself gives up: an answer repeats what it was given.
_DEEPEST: Final = 100


async def read_body(headers: Mapping[str, str], chunks: AsyncIterator[bytes], most: int) -> bytes:
    """Read a body of JSON.

    Args:
        headers: the request's.
        chunks: its body as it comes.
        most: its largest size, in bytes.

    Raises:
        Refused: 413 as soon as it is known to be too large; 415 for anything but JSON.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/([\w.+-]+\+)?json", media_type):
        raise Refused(415, "the body must be JSON; send it with the header Content-Type: application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "the body must not be compressed; send it without Content-Encoding")
    stated = headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and (len(stated) > 18 or int(stated) > most):
        raise _too_large(most)
    parts, size = [], 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise _too_large(most)
        parts.append(chunk)
    return b"".join(parts)


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        Refused: 400 for anything else, and for NaN, infinity, half a surrogate pair or nesting beyond reason.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_no_number, parse_float=_finite)
        if _HALF_OF_A_PAIR.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "the body holds half of a surrogate pair, which is no character; send whole ones") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON in UTF-8: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a JSON {type(value).__name__}, expected an object")
    if body.count(b"[") + body.count(b"{") > _DEEPEST and _depth_exceeds(value, _DEEPEST):
        raise _too_deep()
    return value


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        inside = itertools.chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level)
        level = [one for one in inside if isinstance(one, dict | list)]
    return bool(level)


def _too_deep() -> Refused:
    return Refused(400, f"the body is nested too deeply; expected at most {_DEEPEST} lists and objects in one another")


def _too_large(most: int) -> Refused:
    # What is left of it stays unread, so the connection cannot be used again.
    return Refused(413, f"the body is larger than {most:,} bytes; send less", headers={"Connection": "close"})


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number
