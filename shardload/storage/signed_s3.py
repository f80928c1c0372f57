"""Reads of S3 objects by URLs that are signed once an object: what differs from range to range needs no signature.

A range through the client is described, resolved, signed and taken apart anew each time, which is 2.5 ms of a core and of the
interpreter's lock that the training loop wants as well; by a signed URL it is 0.4, by plain HTTP 0.3 (`bench/request_cost.py`).
"""

from __future__ import annotations

import contextlib
import math
import re
import time
import weakref
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import BotoCoreError

from shardload.storage.ranges import Accept, condition, fill, told_of

_VALID_SECONDS = 1500
"""Those that a URL is used, a clock that is a quarter of an hour off, as S3 allows, and some to spare."""
_USED_SECONDS = 300.0
"""Temporary credentials are renewed ten minutes before they end, and no URL outlives what it was signed with."""
_OFF_SECONDS = 3600.0
_MAX_URLS = 4096
_SESSIONS = ("--x-s3", "--xa-s3")
"""End the names of directory buckets and of access points to them, which are signed for by sessions of five minutes."""
_ALGORITHM = "X-Amz-Algorithm=AWS4-HMAC-SHA256"
_MAX_ERROR_BYTES = 1 << 16
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,100})</Code>")
_REGION = re.compile(r"Credential=[^\s&]*?/\d{8}/([^/\s&]+)/")
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
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._asked = ("", "")
        """Of the client's last request: scheme and host, and the region it was signed for; nothing where it was not."""
        self._proven: dict[tuple[str, str], tuple[str, str]] = {}
        self._urls: dict[tuple[str, str], tuple[str | None, float]] = {}

    def watch(self, client: Any) -> None:
        """Has a client sign URLs as it signs its requests, and tell whom it asks; before its first request."""
        if client in self._watched or _sender(client) is None:
            return
        self._watched.add(client)
        events = client.meta.events
        # Signatures of the version before are what botocore takes by default, and newer stores know them no more.
        events.register("choose-signer.s3.GetObject", _version_4)
        events.register("before-parameter-build.s3.GetObject", self._as_asked)
        events.register("before-send.s3.GetObject", self._note)

    def prove(self, client: Any, bucket: str) -> None:
        """Notes that the client itself has read from a bucket: its region is known then, and who may read there."""
        if client in self._watched and not bucket.endswith(_SESSIONS):
            self._proven[_place(client, bucket)] = self._asked

    async def url(self, client: Any, bucket: str, key: str) -> str | None:
        """Returns where an object is read without another signature; None if the client has to ask."""
        place = _place(client, bucket)
        now = time.monotonic()
        if place not in self._proven or _off.get(place, 0.0) > now:
            return None
        url, until = self._urls.get((bucket, key), (None, 0.0))
        if until < now:
            url = await self._signed(client, bucket, key)
            if len(self._urls) >= _MAX_URLS:
                self._urls.clear()
            self._urls[bucket, key] = url, now + _USED_SECONDS
        return url

    def leave(self, client: Any, bucket: str) -> None:
        """Leaves a bucket to the client for an hour."""
        _off[_place(client, bucket)] = time.monotonic() + _OFF_SECONDS

    async def _signed(self, client: Any, bucket: str, key: str) -> str | None:
        place = _place(client, bucket)
        try:
            url: str = await client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_VALID_SECONDS
            )
        except BotoCoreError:
            # What is wrong is told by the client, which needs as much for its own signature.
            return None
        if "?" in url and _ALGORITHM not in url:
            # Of another algorithm it is not known what it covers.
            _off[place] = math.inf
            return None
        # Another host may not be reached from here, and another region's signature is worth nothing.
        return url if _whom(url, url) == self._proven[place] else None

    def _note(self, request: Any, **_: Any) -> None:
        signature = request.headers.get("Authorization", "")
        self._asked = _whom(request.url, signature if isinstance(signature, str) else signature.decode())

    def _as_asked(self, context: dict[str, Any], **_: Any) -> None:
        """Has a URL be for the client's host and region: by itself it is for the one host of all regions, and the first region."""
        if context.get("is_presign_request"):
            context["use_global_endpoint"] = False
            if region := self._asked[1]:
                context.setdefault("signing", {})["region"] = region

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
                    self.leave(client, bucket)
                raise AnswerStatusError(status, told, await _code(body.content))
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


def _whom(url: str, signature: str) -> tuple[str, str]:
    """Returns scheme and host of a URL, and the region of a signature in a header or in the URL itself."""
    parts, region = urlsplit(url), _REGION.search(unquote(signature))
    return f"{parts.scheme}://{parts.netloc}", region[1] if region else ""


async def _code(body: aiohttp.StreamReader) -> str:
    """Returns the store's own word for an error; nothing where there is none in what comes of the body."""
    read = bytearray()
    # The status is known: what becomes of the rest changes nothing.
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        while chunk := await body.read(_MAX_ERROR_BYTES - len(read)):
            read += chunk
    found = _CODE.search(read)
    return found[1].decode() if found else ""


def _sender(client: Any) -> Any:
    """Returns what a client sends requests by; None where that is not aiohttp, or a release of aiobotocore has it elsewhere."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    return session.send if isinstance(session, AIOHTTPSession) else None


def _version_4(signature_version: Any, **_: Any) -> Any:
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None
