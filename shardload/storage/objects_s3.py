"""Objects of S3 written, listed and removed, by one request each, with the client that reads them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import botocore.exceptions

from shardload.storage.answers import RefusalError
from shardload.storage.ranges_s3 import S3Ranges

_AGAIN = {"ConditionalRequestConflict", "BadDigest", "IncompleteBody", "RequestTimeTooSkewed"}
"""Words of S3 for requests that were not at fault: two that met at one name, or bytes that were damaged on their way."""
_MARK = "shardload"
"""Name of what is noted beside an object, in its metadata."""


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What a store says of an object."""

    num_bytes: int
    mark: str
    """What its writer has noted beside it; nothing where it was another writer."""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload in parts that was begun and not completed: no object yet, but its bytes take room."""

    name: str
    """What the object would be called, below the root."""
    number: str
    """What the store calls the upload."""


class S3Objects(S3Ranges):
    """Objects below an s3 URL. One call is one attempt at one request; what goes wrong is told as by `S3Ranges`."""

    def put(self, name: str, data: bytes, mark: str, only_new: bool, seconds: float) -> bool:
        """Stores an object.

        Args:
            name: of the object, below the root.
            data: its bytes; the store refuses others than these.
            mark: what is noted beside it.
            only_new: only if there is none of that name.
            seconds: how long it may take.

        Returns:
            False where `only_new` and there is one.
        """
        asked = {"Body": data, "ContentMD5": _md5(data), "Metadata": {_MARK: mark}}
        return self._unless_there("put_object", name, seconds, asked, only_new)

    def facts(self, name: str, seconds: float) -> ObjectFacts | None:
        """Returns what is known of an object; None if there is none."""
        try:
            answer = self._ask("head_object", name, seconds, {})
        except botocore.exceptions.ClientError as error:
            if _status(error) == 404:
                return None
            raise
        return ObjectFacts(answer["ContentLength"], answer.get("Metadata", {}).get(_MARK, ""))

    def begin_upload(self, name: str, mark: str, seconds: float) -> str:
        """Begins an upload in parts; returns what the store calls it."""
        return str(self._ask("create_multipart_upload", name, seconds, {"Metadata": {_MARK: mark}})["UploadId"])

    def put_part(self, name: str, upload: str, number: int, data: bytes, seconds: float) -> str:
        """Stores a part, the first of which is number 1; returns its tag."""
        asked = {"UploadId": upload, "PartNumber": number, "Body": data, "ContentMD5": _md5(data)}
        return str(self._ask("upload_part", name, seconds, asked)["ETag"])

    def complete_upload(self, name: str, upload: str, tags: Sequence[str], only_new: bool, seconds: float) -> bool:
        """Makes an object of the parts with these tags; False where `only_new` and there is one."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        asked = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        return self._unless_there("complete_multipart_upload", name, seconds, asked, only_new)

    def abort_upload(self, name: str, upload: str, seconds: float) -> None:
        """Gives an upload in parts up; it need not be there any more."""
        try:
            self._ask("abort_multipart_upload", name, seconds, {"UploadId": upload})
        except botocore.exceptions.ClientError as error:
            if _status(error) != 404:
                raise

    def open_uploads(self, seconds: float) -> list[OpenUpload]:
        """Returns the uploads in parts below the root that were begun and not completed."""
        return self._loop.run(self._open_uploads(), seconds)

    def remove(self, name: str, seconds: float) -> None:
        """Removes an object, which need not be there."""
        self._ask("delete_object", name, seconds, {})

    def explain(self, error: Exception) -> RefusalError:
        """Returns what kind of failure an exception is."""
        if isinstance(error, botocore.exceptions.ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _AGAIN:
                return RefusalError("transient", f"the store answered {code}")
            if code == "NoSuchBucket":
                return RefusalError("refused", "there is no such bucket")
            failure = super().explain(error)
            told = failure.kind == "refused" and code and not code.isdecimal()
            return RefusalError("refused", f"{failure.reason}: {code}") if told else failure
        return super().explain(error)

    def _unless_there(self, method: str, name: str, seconds: float, asked: dict[str, Any], only_new: bool) -> bool:
        try:
            self._ask(method, name, seconds, asked | ({"IfNoneMatch": "*"} if only_new else {}))
        except botocore.exceptions.ClientError as error:
            if not only_new or _status(error) != 412:
                raise
            return False
        return True

    def _ask(self, method: str, name: str, seconds: float, asked: Mapping[str, Any]) -> dict[str, Any]:
        return self._loop.run(self._asked(method, name, asked), seconds)

    async def _asked(self, method: str, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        bucket, key, _ = self._files.split_path(f"{self._root}/{name}")
        function = getattr(await self._client(bucket), method)
        answer: dict[str, Any] = await function(
            **self._files._get_s3_method_kwargs(function, Bucket=bucket, Key=key, **asked)
        )
        return answer

    async def _open_uploads(self) -> list[OpenUpload]:
        bucket, key, _ = self._files.split_path(f"{self._root}/")
        prefix = f"{key.rstrip('/')}/".lstrip("/")
        function = (await self._client(bucket)).list_multipart_uploads
        found: list[OpenUpload] = []
        asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        while True:
            page = await function(**self._files._get_s3_method_kwargs(function, **asked))
            uploads = page.get("Uploads", ())
            found += [OpenUpload(entry["Key"][len(prefix) :], entry["UploadId"]) for entry in uploads]
            if not page.get("IsTruncated"):
                return found
            asked |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
