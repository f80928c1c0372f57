"""Ranges of S3 objects through the client of s3fs, at one attempt each: its own way would ask up to 250 times."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.loaders
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from s3fs import S3FileSystem

from shardload.storage.answers import RefusalError, kind_of_status, refused, seconds_of
from shardload.storage.ranges import Accept, Limits, Loop, Told, condition, fill, one_try, told_of
from shardload.storage.signed_s3 import AnswerStatusError, SignedReads, without_query

_MAX_CONNECTIONS = 128
_CHUNK_BYTES = 1 << 18
_THROTTLED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "RequestThrottled",
}
_TRANSIENT = {"RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"}
_ACCESS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"}
_MISSING = {"NoSuchKey", "NoSuchBucket", "NotFound", "NoSuchVersion"}
_STALLED = (TimeoutError, botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)


class _Session(AIOHTTPSession):  # type: ignore[misc]
    """What aiobotocore sends by, but each request once."""

    async def _get_session(self, *arguments: Any) -> Any:
        return one_try(await super()._get_session(*arguments))


class S3Ranges:
    """Objects below an s3 URL."""

    def __init__(self, url: str, options: Mapping[str, Any], limits: Limits) -> None:
        wait = limits.progress_seconds
        settings = dict(options)
        config: dict[str, Any] = {
            "connect_timeout": wait,
            "read_timeout": wait,
            "max_pool_connections": _MAX_CONNECTIONS,
        }
        config |= settings.pop("config_kwargs", None) or {}
        # One attempt, whatever was asked for: attempts of several layers multiply.
        config["retries"] = {"total_max_attempts": 1, "mode": "standard"}
        if "http_session_cls" in inspect.signature(AioConfig).parameters:
            config.setdefault("http_session_cls", _Session)
        fixed = {"asynchronous": True, "skip_instance_cache": True, "use_listings_cache": False}
        _quiet()
        self._files = S3FileSystem(**(settings | fixed), config_kwargs=config)
        self._files.retries = 1
        self._files.session = self._files.session or _session(self._files.kwargs)
        self._root = self._files._strip_protocol(url).rstrip("/")
        self._ready = False
        self._signed = SignedReads()
        self._loop = Loop(self)

    def fetch(self, name: str, start: int, stop: int, tag: str | None, accept: Accept, seconds: float) -> None:
        """Asks for a range; see `RangeFetch.fetch`."""
        self._loop.run(self._fetch(name, start, stop, tag, accept), seconds)

    def exists(self, name: str, seconds: float) -> bool:
        """Tells whether there is such an object."""
        return self._loop.run(self._exists(name), seconds)

    def list(self, name: str, seconds: float) -> list[str]:
        """Returns the names directly below a name."""
        return sorted(self._loop.run(self._listed(name), seconds))

    def explain(self, error: Exception) -> RefusalError:
        """Returns what kind of failure an exception of botocore, or of aiohttp below it, is."""
        if isinstance(error, RefusalError):
            return error
        if isinstance(error, botocore.exceptions.ClientError):
            return _refused(*_facts(error))
        if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
            return RefusalError("access", str(error))
        if isinstance(error, botocore.exceptions.ParamValidationError):
            return RefusalError("refused", "this is no name of an object")
        if isinstance(error, botocore.exceptions.EndpointConnectionError):
            # What aiohttp said is told apart no more: its word is the one for a connection that broke, too.
            arrived = not isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
            return RefusalError(
                "transient" if arrived else "unreachable", f"no connection: {without_query(str(error))}"
            )
        if isinstance(error, _STALLED):
            return RefusalError("stalled", "no answer, or no more of it, in time")
        transient = (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.HTTPClientError,
            aiohttp.ClientError,
            OSError,
        )
        kind = "transient" if isinstance(error, transient) else "refused"
        return RefusalError(kind, f"{type(error).__name__}: {without_query(str(error))}")  # type: ignore[arg-type]

    async def _client(self, bucket: str) -> Any:
        await self._files.set_session()
        if not self._ready:
            self._ready = True
            self._loop.on_close(partial(self._files._s3creator.__aexit__, None, None, None))
        client = await self._files.get_s3(bucket)
        self._signed.watch(client)
        return client

    async def _get(self, name: str, start: int, stop: int, tag: str | None) -> Any:
        """Returns the answer to a request by the client itself."""
        bucket, key, _ = self._files.split_path(f"{self._root}/{name}")
        client = await self._client(bucket)
        asked = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}"}
        if (required := condition(tag)) is not None:
            asked["IfMatch"] = required
        # Releases of s3fs before 2026 do not add by themselves who pays.
        sent = self._files._get_s3_method_kwargs(client.get_object, self._files.req_kw, **asked)
        answer = await client.get_object(**sent)
        # What else is sent with each request would have to be signed with it.
        if sent == asked:
            self._signed.prove(client, bucket)
        return answer

    async def _fetch(self, name: str, start: int, stop: int, tag: str | None, accept: Accept) -> None:
        bucket, key, _ = self._files.split_path(f"{self._root}/{name}")
        client = await self._client(bucket)
        if (url := await self._signed.url(client, bucket, key)) is not None:
            try:
                await self._signed.fetch(client, bucket, url, (start, stop, tag), accept)
            except AnswerStatusError as error:
                refusal = _refused(error.status, error.headers, error.code)
                if refusal.kind == "refused":
                    # Who knows no such URLs says so in many ways. As where credentials ended, the next attempt is the client's.
                    self._signed.leave(client, bucket)
                    refusal.kind = "access"
                raise refusal from None
            return
        try:
            answer = await self._get(name, start, stop, tag)
        except botocore.exceptions.ClientError as error:
            status, headers, _ = _facts(error)
            if status != 416:
                raise
            accept(told_of(416, headers, start))
            return
        body = answer["Body"]
        try:
            facts = answer["ResponseMetadata"]
            told: Told = told_of(facts["HTTPStatusCode"], dict(facts["HTTPHeaders"]), start)
            await fill(accept(told), partial(body.read, _CHUNK_BYTES))
        finally:
            body.close()

    async def _exists(self, name: str) -> bool:
        try:
            answer = await self._get(name, 0, 1, None)
        except botocore.exceptions.ClientError as error:
            facts = _facts(error)
            if facts[0] == 416:
                return True
            if _refused(*facts).kind == "missing":
                return False
            raise
        answer["Body"].close()
        return True

    async def _listed(self, name: str) -> set[str]:
        bucket, key, _ = self._files.split_path(f"{self._root}/{name}")
        prefix = f"{key.rstrip('/')}/" if name else f"{key.rstrip('/')}/".lstrip("/")
        client = await self._client(bucket)
        found: set[str] = set()
        asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
        while True:
            sent = self._files._get_s3_method_kwargs(client.list_objects_v2, self._files.req_kw, **asked)
            page = await client.list_objects_v2(**sent)
            found |= {entry["Key"][len(prefix) :] for entry in page.get("Contents", ())}
            found |= {entry["Prefix"][len(prefix) :].rstrip("/") for entry in page.get("CommonPrefixes", ())}
            if not page.get("IsTruncated"):
                return found - {""}
            asked["ContinuationToken"] = page["NextContinuationToken"]


_loader = functools.cache(botocore.loaders.create_loader)
"""What botocore reads of its own files, once in a process: each dataset would wait half a second for it else."""


def _session(settings: Mapping[str, Any]) -> AioSession:
    """Returns what s3fs would make for itself, but for who reads the descriptions of services."""
    session = AioSession(**settings)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    return session


def _quiet() -> None:
    """Keeps key ids and session tokens out of logs: below INFO botocore writes the headers of all requests.

    Only where nobody chose a level for its loggers: who asks for `logging.getLogger("botocore")` at DEBUG has it.
    """
    for name in ("botocore", "aiobotocore"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def _facts(error: botocore.exceptions.ClientError) -> tuple[int, dict[str, str], str]:
    """Returns status, headers and S3's own word of an answer that the client has made an exception of."""
    facts, code = error.response.get("ResponseMetadata", {}), str(error.response.get("Error", {}).get("Code", ""))
    return int(facts.get("HTTPStatusCode") or 0), dict(facts.get("HTTPHeaders", {})), code


def _refused(status: int, headers: Mapping[str, str], code: str) -> RefusalError:
    """Returns what kind of failure S3's own word for it, and else its status, tells of."""
    failure = refused(status, headers.get("retry-after"))
    for kind, codes in (
        ("throttled", _THROTTLED),
        ("transient", _TRANSIENT),
        ("access", _ACCESS),
        ("missing", _MISSING),
    ):
        if code in codes and kind_of_status(status) != kind:
            wait = seconds_of(headers.get("retry-after"))
            return RefusalError(kind, f"the store answered {code}", wait)  # type: ignore[arg-type]
    return failure
