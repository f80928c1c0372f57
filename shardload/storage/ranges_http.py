"""Ranges by HTTP, with what the answer says of itself checked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from shardload.storage.answers import RefusalError, refused
from shardload.storage.ranges import Accept, Limits, Loop, condition, fill, one_try, told_of

_MAX_CONNECTIONS = 128


class HttpRanges:
    """Objects below an http or https URL. Names are put before its query string, which goes with every request."""

    def __init__(self, url: str, options: Mapping[str, Any], limits: Limits) -> None:
        base, question, query = url.partition("?")
        self._base, self._query = base.partition("#")[0].rstrip("/"), question + query.partition("#")[0]
        settings = {"client_kwargs": {}, **options}
        self._client_options = dict(settings["client_kwargs"])
        self._limits = limits
        files = {"asynchronous": True, "get_client": self._connect, "skip_instance_cache": True}
        self._files = HTTPFileSystem(**(settings | files))
        self._loop = Loop(self)

    @staticmethod
    async def _connect(**kwargs: Any) -> aiohttp.ClientSession:
        kwargs.pop("loop", None)
        return one_try(aiohttp.ClientSession(**({"connector": aiohttp.TCPConnector(limit=_MAX_CONNECTIONS)} | kwargs)))

    def fetch(self, name: str, start: int, stop: int, tag: str | None, accept: Accept, seconds: float) -> None:
        """Asks for a range; see `RangeFetch.fetch`."""
        self._loop.run(self._fetch(name, start, stop, tag, accept), seconds)

    def exists(self, name: str, seconds: float) -> bool:
        """Tells whether there is such an object: a first byte, or the word that there is none."""
        return self._loop.run(self._exists(name), seconds)

    def list(self, name: str, seconds: float) -> list[str]:
        """Returns nothing: HTTP has no listings."""
        return []

    def explain(self, error: Exception) -> RefusalError:
        """Returns what kind of failure an exception of aiohttp is."""
        if isinstance(error, RefusalError):
            return error
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
            return RefusalError("stalled", "no answer, or no more of it, in time")
        if isinstance(error, aiohttp.ClientSSLError):
            return RefusalError("access", f"no secure connection: {error}")
        if isinstance(error, aiohttp.InvalidURL):
            return RefusalError("refused", "this is no URL")
        if isinstance(error, aiohttp.ClientConnectorError):
            return RefusalError("unreachable", f"no connection: {error}")
        return RefusalError("transient", f"{type(error).__name__}: {error}")

    def _request(self, session: aiohttp.ClientSession, name: str, start: int, stop: int, tag: str | None) -> Any:
        settings = dict(self._files.kwargs)
        headers = dict(settings.pop("headers", {}))
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if (required := condition(tag)) is not None:
            headers["If-Match"] = required
        wait = self._limits.progress_seconds
        settings.setdefault("timeout", aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait))
        url = f"{self._base}/{quote(name)}{self._query}"
        return session.get(self._files.encode_url(url), headers=headers, **settings)

    async def _session(self) -> aiohttp.ClientSession:
        made = self._files._session is None
        session: aiohttp.ClientSession = await self._files.set_session()
        if made:
            self._loop.on_close(session.close)
        return session

    async def _fetch(self, name: str, start: int, stop: int, tag: str | None, accept: Accept) -> None:
        async with self._request(await self._session(), name, start, stop, tag) as answer:
            headers = {key.lower(): value for key, value in answer.headers.items()}
            view = accept(told_of(answer.status, headers, start))
            # Of a range outside the object there are no bytes, but some servers say so in words.
            if answer.status != 416:
                await fill(view, answer.content.readany)

    async def _exists(self, name: str) -> bool:
        async with self._request(await self._session(), name, 0, 1, None) as answer:
            if answer.status in (200, 206, 416):
                return True
            failure = refused(answer.status, answer.headers.get("Retry-After"))
        if failure.kind == "missing":
            return False
        raise failure
