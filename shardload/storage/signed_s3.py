"""Reads of S3 objects by URLs that are signed once an object: what differs from range to range needs no signature.

A range through the client is described, resolved, signed and taken apart anew each time, which is 2.5 ms of a core and of the
interpreter's lock that the training loop wants as well; by a signed URL it is 0.4, by plain HTTP 0.3 (`bench/request_cost.py`).
"""

from __future__ import annotations

import math
import re
import time
from functools import partial
from typing import Any

from botocore.awsrequest import AWSPreparedRequest

from shardload.storage.ranges import Accept, condition, fill, told_of

_VALID_SECONDS = 3600
_USED_SECONDS = 300.0
"""Temporary credentials are renewed ten minutes before they end, and no URL outlives what it was signed with."""
_OFF_SECONDS = 3600.0
_MAX_URLS = 4096
_SESSIONS = "--x-s3"
"""Ends the names of directory buckets, which are signed for by sessions of five minutes."""
_ALGORITHM = "X-Amz-Algorithm=AWS4-HMAC-SHA256"
_MAX_ERROR_BYTES = 1 << 16
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,100})</Code>")
_QUERY = re.compile(r"(?<=\S)\?[^\s'\"<>]*")

_off: dict[tuple[str, str], float] = {}
"""Endpoint and bucket -> until when it is read by the client: a policy may forbid what was signed beforehand."""


class AnswerStatusError(Exception):
    """An answer that is no range."""

    def __init__(self, status: int, headers: dict[str, str], code: str) -> None:
        super().__init__(f"status {status} {code}")
        self.status = status
        self.headers = headers
        self.code = code
        """The store's own word for it; nothing where it has none."""


class SignedReads:
    """What one client reads by signed URLs; the client itself asks first, and wherever they are of no use."""

    def __init__(self) -> None:
        self._proven: set[tuple[str, str]] = set()
        self._urls: dict[tuple[str, str], tuple[str, float]] = {}

    def prove(self, client: Any, bucket: str) -> None:
        """Notes that the client itself has read from a bucket: its region is known then, and who may read there."""
        place = _place(client, bucket)
        if place not in self._proven and not bucket.endswith(_SESSIONS) and _sender(client) is not None:
            # Signatures of the version before are what botocore takes by default, and newer stores know them no more.
            client.meta.events.register("choose-signer.s3.GetObject", _version_4)
            self._proven.add(place)

    async def url(self, client: Any, bucket: str, key: str) -> str | None:
        """Returns where an object is read without another signature; None if the client has to ask."""
        place = _place(client, bucket)
        now = time.monotonic()
        if place not in self._proven or _off.get(place, 0.0) > now:
            return None
        url, until = self._urls.get((bucket, key), ("", 0.0))
        if until < now:
            asked = {"Bucket": bucket, "Key": key}
            url = await client.generate_presigned_url("get_object", Params=asked, ExpiresIn=_VALID_SECONDS)
            if "?" in url and _ALGORITHM not in url:
                # Of another algorithm it is not known what it covers.
                _off[place] = math.inf
                return None
            if len(self._urls) >= _MAX_URLS:
                self._urls.clear()
            self._urls[bucket, key] = url, now + _USED_SECONDS
        return url

    async def fetch(
        self, client: Any, bucket: str, url: str, asked: tuple[int, int, str | None], accept: Accept
    ) -> None:
        """Asks for a range.

        Args:
            client: of the bucket.
            bucket: where the object is.
            url: from `url`.
            asked: first byte, byte after the last, and the tag that the object must have.
            accept: see `Accept`.

        Raises:
            AnswerStatusError: the store refuses.
        """
        start, stop, tag = asked
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if (required := condition(tag)) is not None:
            headers["If-Match"] = required
        # By what the client itself sends with: proxies, certificates, limits and errors are the same.
        answer = await _sender(client)(AWSPreparedRequest("GET", url, headers, None, True))
        body = answer.raw
        try:
            status, told = answer.status_code, {name.lower(): value for name, value in answer.headers.items()}
            if status >= 300 and status != 416:
                if status in (401, 403):
                    _off[_place(client, bucket)] = time.monotonic() + _OFF_SECONDS
                code = _CODE.search(await body.content.read(_MAX_ERROR_BYTES))
                raise AnswerStatusError(status, told, code[1].decode() if code else "")
            view = accept(told_of(status, told, start))
            if status != 416:
                await fill(view, partial(body.content.readany))
        finally:
            body.close()


def without_query(text: str) -> str:
    """Returns a text whose URLs have lost their query strings, which hold signatures."""
    return _QUERY.sub("", text)


def _place(client: Any, bucket: str) -> tuple[str, str]:
    return client.meta.endpoint_url, bucket


def _sender(client: Any) -> Any:
    """Returns what a client sends requests by; None where a release of aiobotocore has it elsewhere."""
    return getattr(getattr(getattr(client, "_endpoint", None), "http_session", None), "send", None)


def _version_4(signature_version: Any, **_: Any) -> Any:
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None
