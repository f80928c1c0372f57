"""Reads of S3 by URLs that were signed beforehand: when they are used, and what is done where they are of no use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from fault_proxy import Answer, Fault, FaultProxy, cut, s3_error
from servers import BUCKET, ObjectStore, s3_options

from shardload.errors import StorageError
from shardload.storage import RemoteStorage, RetryingStorage, signed_s3
from shardload.storage.schedule import RetryPolicy

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed_s3, "_off", {})


@pytest.fixture
def place(object_store: ObjectStore, request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder of the store with one object, `name`."""
    files = fsspec.filesystem("s3", use_listings_cache=False, **object_store.s3_options)
    folder = f"{BUCKET}/signed-{abs(hash(request.node.name))}"
    files.pipe_file(f"{folder}/na me", CONTENT)
    yield f"s3://{folder}"


def storage_at(place: str, proxy: FaultProxy, **more: Any) -> RetryingStorage:
    policy = RetryPolicy(deadline_seconds=10, first_wait_seconds=0.001)
    return RetryingStorage(RemoteStorage(place, s3_options(proxy.port) | more), policy)


def asked_by(proxy: FaultProxy) -> list[str]:
    """Tells of each request how it was signed."""
    return ["url" if "X-Amz-Signature" in parse_qs(urlsplit(one.path).query) else "header" for one in proxy.asked]


def test_one_signature_is_for_all_ranges_of_an_object(place: str, s3_proxy: FaultProxy) -> None:
    file = storage_at(place, s3_proxy).open("na me")
    parts = [(0, 9), (4000, 4096), (100, 10_240)]
    assert [file.read(*part) for part in parts] == [CONTENT[slice(*part)] for part in parts]
    assert asked_by(s3_proxy) == ["header", "url", "url", "url"]
    assert len({one.path for one in s3_proxy.asked[1:]}) == 1
    assert [one.range for one in s3_proxy.asked[1:]] == ["bytes=0-8", "bytes=4000-4095", "bytes=100-10239"]
    assert all("if-match" in one.headers and "authorization" not in one.headers for one in s3_proxy.asked[1:])


def test_signatures_are_renewed_while_they_are_good(place: str, s3_proxy: FaultProxy, monkeypatch: Any) -> None:
    signed = signed_s3.SignedReads.url
    made: list[Any] = []

    async def noted(self: Any, *where: Any) -> Any:
        made.append(await signed(self, *where))
        # Another one of the same second would be the same: it is told by this.
        self._urls = {key: (f"{url}#{len(made)}", until) for key, (url, until) in self._urls.items()}
        return made[-1]

    monkeypatch.setattr(signed_s3.SignedReads, "url", noted)
    file = storage_at(place, s3_proxy).open("na me")
    for seconds in (-1.0, -1.0, 300.0, 300.0):
        # Holds for what is signed from then on.
        monkeypatch.setattr(signed_s3, "_USED_SECONDS", seconds)
        file.read(5, 9)
    assert [url and url.partition("#")[2] for url in made] == [None, "", "", "", "4"]


def test_credentials_that_ended_are_read_anew(place: str, s3_proxy: FaultProxy) -> None:
    file = storage_at(place, s3_proxy).open("na me")
    fault = s3_error(400, "ExpiredToken")
    fault.path, fault.times = "X-Amz-Signature", 1
    s3_proxy.arm(fault)
    assert file.read(0, 9) + file.read(9, 20) == CONTENT[:20]
    assert asked_by(s3_proxy) == ["header", "url", "header", "url"]


@pytest.mark.parametrize(
    ("code", "word"),
    [(403, "AccessDenied"), (400, "AuthorizationQueryParametersError"), (501, "NotImplemented")],
)
def test_who_refuses_such_urls_is_asked_by_the_client(place: str, s3_proxy: FaultProxy, code: int, word: str) -> None:
    storage = storage_at(place, s3_proxy)
    file = storage.open("na me")
    fault = s3_error(code, word)
    fault.path = "X-Amz-Signature"
    s3_proxy.arm(fault)
    assert file.read(0, 9) + file.read(9, 20) == CONTENT[:20]
    # The one that was refused, and no other; also by whoever opens it anew.
    assert asked_by(s3_proxy) == ["header", "url", "header", "header"]
    assert storage_at(place, s3_proxy).open("na me").read(0, 9) == CONTENT[:9]
    assert asked_by(s3_proxy)[4:] == ["header", "header"]


def test_what_goes_with_each_request_is_signed_with_it(place: str, s3_proxy: FaultProxy) -> None:
    file = storage_at(place, s3_proxy, requester_pays=True).open("na me")
    assert file.read(0, 9) + file.read(9, 20) == CONTENT[:20]
    assert asked_by(s3_proxy) == ["header"] * 3
    assert all(one.headers["x-amz-request-payer"] == "requester" for one in s3_proxy.asked)


@pytest.mark.parametrize(
    ("code", "word", "message"),
    [
        (404, "NoSuchKey", "na me is missing"),
        (412, "PreconditionFailed", "changed since"),
        (416, "InvalidRange", "changed since"),
        (503, "SlowDown", "gave up after"),
    ],
)
def test_refusals_are_told_apart(place: str, s3_proxy: FaultProxy, code: int, word: str, message: str) -> None:
    file = storage_at(place, s3_proxy).open("na me")
    fault = s3_error(code, word)
    fault.path = "X-Amz-Signature"
    s3_proxy.arm(fault)
    with pytest.raises(StorageError, match=message) as caught:
        file.read(3, 9)
    assert fault.num_hits and "X-Amz" not in str(caught.value)


def test_no_signature_is_in_the_message_of_a_connection_that_fails(place: str, s3_proxy: FaultProxy) -> None:
    file = RemoteStorage(place, s3_options(s3_proxy.port)).open("na me")
    fault = cut("before", "reset")
    fault.path = "X-Amz-Signature"
    s3_proxy.arm(fault)
    with pytest.raises(StorageError, match="na%20me") as caught:
        file.read(3, 9)
    assert "X-Amz" not in str(caught.value)


def test_the_word_of_a_refusal_is_read_however_it_comes(place: str, s3_proxy: FaultProxy) -> None:
    file = storage_at(place, s3_proxy).open("na me")
    ended = s3_error(400, "ExpiredToken").instead
    # Its word begins in the first part, and ends in the second.
    fault = Fault("parts", 1, "X-Amz-Signature", instead=ended, step_seconds=0.01, step_bytes=60)
    s3_proxy.arm(fault)
    assert file.read(0, 9) + file.read(9, 20) == CONTENT[:20]
    assert asked_by(s3_proxy) == ["header", "url", "header", "url"]


def test_a_refusal_that_breaks_off_is_one(place: str, s3_proxy: FaultProxy) -> None:
    file = storage_at(place, s3_proxy).open("na me")
    s3_proxy.arm(Fault("cut", path="X-Amz-Signature", instead=s3_error(404, "Other").instead, cut="body", ending="fin"))
    with pytest.raises(StorageError, match="na me is missing"):
        file.read(3, 9)


@pytest.mark.parametrize(
    ("region", "config", "more"),
    [
        ("eu-central-1", {}, {"token": "token"}),
        ("eu-central-1", {}, {"anon": True}),
        ("us-west-2", {"use_fips_endpoint": True}, {}),
        ("ap-south-1", {}, {}),
    ],
)
def test_urls_ask_the_same_host_and_are_for_the_same_region_as_the_client(
    s3_proxy: FaultProxy, region: str, config: dict[str, Any], more: dict[str, Any]
) -> None:
    body = b"<Error><Code>PermanentRedirect</Code><Endpoint>bucket.s3.eu-west-1.amazonaws.com</Endpoint></Error>"
    moved = Answer(301, {"x-amz-bucket-region": "eu-west-1", "content-type": "application/xml"}, body)
    right = Answer(206, {"content-range": "bytes 0-8/9", "etag": '"tag"'}, CONTENT[:9])
    s3_proxy.arm(Fault("moved", path="ap-south-1", instead=moved), Fault("right", instead=right))
    options = {"key": "AKIA", "secret": "secret", "use_ssl": False, "client_kwargs": {"region_name": region}}
    proxies = {"proxies": {"http": f"http://127.0.0.1:{s3_proxy.port}"}}
    storage = RemoteStorage("s3://bucket/to", options | more | {"config_kwargs": config | proxies})
    assert [storage.read_small("name", 9) for _ in range(3)] == [CONTENT[:9]] * 3
    (by_client, by_url, again) = s3_proxy.asked[-3:]
    assert by_url.path == again.path and "authorization" not in by_url.headers
    assert by_url.path.partition("?")[0] == by_client.path
    query, signed = parse_qs(urlsplit(by_url.path).query), by_client.headers.get("authorization", "")
    # Without the key and the day: a day may end between the two.
    scope = "".join(query.get("X-Amz-Credential", ())).split("/")[2:]
    assert scope == signed.partition("Credential=")[2].partition(",")[0].split("/")[2:]
    assert query.get("X-Amz-Security-Token", [None]) == [by_client.headers.get("x-amz-security-token")]
