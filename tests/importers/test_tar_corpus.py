"""Tars that are not as they should be: each is named, and what can be read of it is read."""

from __future__ import annotations

import dataclasses
import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import END, header, long_name, member, packed, padded, pax, summed

from shardload.errors import PackError
from shardload.importers import Reject, Sample, open_source, tar_archive, tar_samples

TYPES = {
    "key": "str",
    "cls": "int64?",
    "flt": "float64?",
    "json": "json?",
    "npy": "float32[2]?",
    "pth": "bytes?",
    "txt": "str?",
}
SUFFIXES = [".tar", ".tar.gz", ".tgz", ".tar.zst"]
GOOD = member("good.txt", b"g")
LAST = member("last.txt", b"l")


def npy(array: object, **options: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def reader_of(path: str):
    plan = open_source([path]).plan(TYPES, None)
    return dataclasses.replace(plan.reader, chosen=False), plan.units


def read(path: str) -> list[Sample | Reject]:
    reader, units = reader_of(path)
    return [one for unit in units for one in reader.read(unit)]


def sorted_out(read: list[Sample | Reject]) -> tuple[list[Reject], list[Sample]]:
    return [one for one in read if isinstance(one, Reject)], [one for one in read if isinstance(one, Sample)]


@pytest.fixture
def write(tmp_path: Path):
    def write(data: bytes, suffix: str = ".tar") -> str:
        path = tmp_path / f"t{suffix}"
        path.write_bytes(packed(data, suffix))
        return str(path)

    return write


SOUND = {
    "two dots above": (member("../../a.txt", b"1"), "../../a"),
    "absolute": (member("/etc/a.txt", b"1"), "/etc/a"),
    "dot slash": (member("./a.txt", b"1"), "./a"),
    "upper case": (member("a.TXT", b"1"), "a"),
    "unicode": (member("ä/日本.txt", b"1"), "ä/日本"),
    "control character in a key": (member("a\x01\x7f.txt", b"1"), "a\x01\x7f"),
    "PAX path": (pax(path="p" * 300 + ".txt") + member("cut", b"1"), "p" * 300),
    "PAX path before a long name": (pax(path="a.txt") + long_name(b"b.txt") + member("c.txt", b"1"), "a"),
    "long name before a PAX path": (long_name(b"b.txt") + pax(path="a.txt") + member("c.txt", b"1"), "b"),
    "PAX size": (pax(size="600") + header("a.txt", 0) + padded(b"1".ljust(600)), "a"),
    "PAX global comment": (pax(b"g", comment="0" * 40) + member("a.txt", b"1"), "a"),
    "PAX of Solaris": (pax(b"X", path="a.txt") + member("cut", b"1"), "a"),
    "PAX with hdrcharset": (pax(hdrcharset="BINARY", path="ä.txt") + member("cut", b"1"), "ä"),
    "PAX times": (pax(mtime="1.5", atime="2.25") + member("a.txt", b"1"), "a"),
    "GNU long name": (long_name(b"n" * 5000 + b".txt") + member("cut", b"1"), "n" * 5000),
    "a thousand long names": (long_name(b"x.txt") + long_name(b"y.txt") * 2000 + member("cut", b"1"), "x"),
    "long link name": (member("././@LongLink", b"x\0", kind=b"K") + member("a.txt", b"1"), "a"),
    "prefix": (member("d" * 90 + "/" + "e" * 90 + ".txt", b"1"), "d" * 90 + "/" + "e" * 90),
    "old V7 header": (summed(header("a.txt", 1, b"\0")[:257] + bytes(255)) + padded(b"1"), "a"),
    "contiguous file": (member("a.txt", b"1", kind=b"7"), "a"),
    "directories": (header("d", kind=b"5") + header("d.txt", kind=b"5") + member("a.txt", b"1"), "a"),
    "directory of V7": (header("d.txt/", kind=b"\0") + member("a.txt", b"1"), "a"),
    "directory between members": (member("a.txt", b"1") + header("a", kind=b"5") + member("a.pth", b"2"), "a"),
    "own members of webdataset": (member("__index__/x.txt") + member("__m__") + member("a.txt", b"1"), "a"),
    "a tar in a tar": (member("a.pth", GOOD + END) + member("a.txt", b"1"), "a"),
    "a zip bomb's name": (member("a.pth", b"PK\x03\x04") + member("a.txt", b"1"), "a"),
    "JSON with a byte order mark": (member("a.json", b"\xef\xbb\xbf[1]") + member("a.txt", b"1"), "a"),
    "array in Fortran's order": (
        member("a.npy", npy(np.asfortranarray(np.zeros(2, np.float32)))) + member("a.txt", b"1"),
        "a",
    ),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", SOUND)
def test_odd_but_sound(write, name: str, suffix: str) -> None:
    data, key = SOUND[name]
    samples = read(write(GOOD + data + LAST + END, suffix))
    assert [sample.values["key"] for sample in samples] == ["good", key, "last"]
    assert samples[1].values["txt"].strip() == "1"


@pytest.mark.parametrize("end", [bytes(512), bytes(513), bytes(1024), bytes(10240)], ids=len)
def test_an_end_is_a_block_of_zeros_or_more(write, end: bytes) -> None:
    assert len(read(write(GOOD + LAST + end))) == 2
    assert read(write(end)) == []


A = "sample 'a'"
REJECTS = {
    "hard link": (header("a.jpg", kind=b"1", linkname="b.jpg"), A, "member 'a.jpg' is a hard link; only regular"),
    "symbolic link": (header("a.jpg", kind=b"2", linkname="/etc/passwd"), A, "member 'a.jpg' is a symbolic link"),
    "character device": (header("a.jpg", kind=b"3"), A, "member 'a.jpg' is a character device"),
    "block device": (header("a.jpg", kind=b"4"), A, "member 'a.jpg' is a block device"),
    "FIFO": (header("a.jpg", kind=b"6"), A, "member 'a.jpg' is a FIFO"),
    "sparse of GNU": (member("a.jpg", b"1", kind=b"S"), A, "member 'a.jpg' is a sparse file"),
    "sparse of GNU with a longer map": (
        summed(bytearray(header("a.jpg", 1, b"S"))[:482] + b"\1" + bytes(29))
        + bytes(504)
        + b"\1"
        + bytes(7)
        + bytes(512)
        + padded(b"1"),
        A,
        "member 'a.jpg' is a sparse file",
    ),
    "sparse of PAX": (
        pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__name="a.jpg")
        + member("x/GNUSparseFile.1/a.jpg"),
        A,
        "member 'a.jpg' is a sparse file",
    ),
    "unknown type": (member("a.jpg", b"1", kind=b"V"), A, "member 'a.jpg' is of type b'V'"),
    "link among sound members": (
        member("a.cls", b"1") + header("a.jpg", kind=b"1") + member("a.txt", b"1"),
        A,
        "is a hard link",
    ),
    "link without a key": (
        header("latest", kind=b"2"),
        "member 'latest'",
        "it is a symbolic link, and its name has no key",
    ),
    "no extension": (member("README", b"1"), "member 'README'", "its name has no key and extension"),
    "nothing before the dot": (member("d/.hidden.txt"), "member 'd/.hidden.txt'", "its name has no key and extension"),
    "resource fork": (member("._a.txt"), "member '._a.txt'", "its name has no key and extension"),
    "a dot in the folder only": (member("d.x/a"), "member 'd.x/a'", "its name has no key and extension"),
    "empty name": (member(b"", b"1"), "member ''", "its name has no key and extension"),
    "nothing after the dot": (member("a."), A, "member 'a.': '' is no field name"),
    "extension with an underscore": (member("a.__url__"), A, "member 'a.__url__': field name '__url__' is reserved"),
    "extension with a control character": (member("a.t\x07t"), A, "'t\\x07t' is no field name"),
    "extension longer than a name": (long_name(b"a." + b"x" * 200) + member("cut"), A, "is longer than 128 bytes"),
    "extension of the key's name": (member("a.key"), A, "member 'a.key': the field 'key' is for the key of the sample"),
    "key not UTF-8": (member(b"\xffa.txt"), "sample '\\udcffa'", "the name of member '\\udcffa.txt' is not UTF-8"),
    "extension not UTF-8": (member(b"a.\xfft"), A, "the name of member 'a.\\udcfft' is not UTF-8"),
    "PAX path not UTF-8": (pax(path=b"\xff.txt") + member("cut"), "sample '\\udcff'", "is not UTF-8"),
    "member twice": (member("a.txt", b"1") * 2, A, "member 'a.txt' stands in it twice, the second time at byte 2048"),
    "member twice but for its case": (member("a.txt") + member("a.TXT"), A, "member 'a.TXT' stands in it twice"),
    "too many members": (
        b"".join(header(f"a.{i}") for i in range(1024)),
        A,
        "it has over 1,023 members; webdataset takes a name up to its first",
    ),
    "text not UTF-8": (
        member("a.txt", b"1\xff"),
        A,
        "its member 'txt' is not UTF-8: byte 1 is 0xff; to keep the bytes",
    ),
    "class not a number": (member("a.cls", b"cat"), A, "its member 'cls' is no integer: b'cat'; to keep it as text"),
    "class with a fraction": (member("a.cls", b"1.0"), A, "its member 'cls' is no integer"),
    "class in other digits": (member("a.cls", "\u0661".encode()), A, "its member 'cls' is no integer"),
    "class with an underscore": (member("a.cls", b"1_0"), A, "its member 'cls' is no integer"),
    "empty class": (member("a.cls"), A, "its member 'cls' is no integer: b''"),
    "number that is none": (member("a.flt", b"1e"), A, "its member 'flt' is no number: b'1e'"),
    "broken JSON": (member("a.json", b"{"), A, "its member 'json' is broken JSON"),
    "JSON with NaN": (member("a.json", b"[NaN]"), A, "its member 'json' is broken JSON: NaN is not JSON"),
    "JSON with a key twice": (member("a.json", b'{"b":1,"b":2}'), A, "'b' stands in an object twice"),
    "JSON nested too deeply": (member("a.json", b"[" * 200_000), A, "its member 'json' is broken JSON"),
    "JSON not UTF-8": (member("a.json", b'"\xff"'), A, "its member 'json' is broken JSON"),
    "array of objects": (
        member("a.npy", npy(np.array([{}], object), allow_pickle=True)),
        A,
        "holds Python objects, which only unpickling",
    ),
    "array that is none": (member("a.npy", b"\x80\x04K\x01."), A, "its member 'npy' is no npy file"),
    "array cut short": (
        member("a.npy", npy(np.zeros(2, np.float32))[:-1]),
        A,
        "says that it is float32 [2] of 8 bytes, but has 7",
    ),
    "array of 2^60 values": (
        member("a.npy", npy(np.zeros(2, np.float32)).replace(b"(2,),", b"(%d,)," % (1 << 60))),
        A,
        "its member 'npy'",
    ),
    "array of a negative length": (
        member("a.npy", npy(np.zeros(2, np.float32)).replace(b"(2,),", b"(-2,),")),
        A,
        "its member 'npy' is no npy file",
    ),
    "array with a header that is code": (
        member("a.npy", npy(np.zeros(2, np.float32)).replace(b"(2,),", b"exit(")),
        A,
        "its member 'npy' is no npy file",
    ),
    "array of records": (member("a.npy", npy(np.zeros(1, "i4,f4"))), A, "for which there is no type"),
    "array of text": (member("a.npy", npy(np.array(["x"]))), A, "for which there is no type"),
    "array of complex numbers": (member("a.npy", npy(np.zeros(1, complex))), A, "for which there is no type"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", REJECTS)
def test_what_is_no_sample_is_named_and_reading_goes_on(write, name: str, suffix: str) -> None:
    data, place, reason = REJECTS[name]
    path = write(GOOD + data + LAST + END, suffix)
    # A member without a key does not end the sample that it stands in, and is told of before it.
    [reject], (first, last) = sorted_out(read(path))
    assert first.values == {"key": "good", "txt": "g"} and last.values == {"key": "last", "txt": "l"}
    assert str(reject.place) == f"{path} {place}" and reason in reject.reason
    assert first.num_bytes + reject.num_bytes + last.num_bytes <= os.path.getsize(path)
    if suffix == ".tar":
        assert (first.num_bytes, reject.num_bytes, last.num_bytes) == (1024, len(data), 1024)


def test_a_key_that_comes_again_is_no_sample(write) -> None:
    path = write(GOOD + LAST + member("good.cls", b"1") + member("b.txt") + END)
    first, last, reject, after = read(path)
    assert [one.values["key"] for one in (first, last, after)] == ["good", "last", "b"]
    assert str(reject.place) == f"{path} sample 'good'" and reject.reason.startswith(
        "the key came before in this tar, and comes again at byte 2048: the members of a sample must stand"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sample_over_the_limit_is_never_in_memory(write, monkeypatch, suffix: str) -> None:
    monkeypatch.setattr(tar_samples, "MAX_SAMPLE_BYTES", 1 << 20)
    path = write(GOOD + member("a.pth", bytes(32 << 20)) + member("a.txt") + LAST + END, suffix)
    read(write(GOOD + END, f"-other{suffix}"))
    tracemalloc.start()
    try:
        _, reject, _ = read(path)
        assert tracemalloc.get_traced_memory()[1] < (48 << 20 if suffix.endswith("zst") else 4 << 20)
    finally:
        tracemalloc.stop()
    assert reject.reason == "its members have over 1.0 MiB together up to member 'a.pth'; that is the limit"


FATAL = {
    "empty": (b"", "it is empty"),
    "no end": (
        GOOD + LAST,
        "after member 'last.txt': the archive has no end: after byte 2048 there should be a member",
    ),
    "cut between members": (GOOD, "after member 'good.txt': the archive has no end"),
    "cut in a header": (GOOD + LAST[:100], "the header at byte 1024 has 100 bytes instead of 512"),
    "cut in the end": (GOOD + bytes(500), "the header at byte 1024 has 500 bytes instead of 512"),
    "cut in data": (GOOD + LAST[:513], "1537"),
    "cut in padding": (GOOD + LAST[:-1], "2047"),
    "cut in a PAX header": (GOOD + pax(path="a.txt")[:-512], "1536"),
    "data longer than the tar": (GOOD + header("a.txt", 5000) + LAST + END, "3584"),
    "data of many TiB": (GOOD + header("a.txt", 1 << 44, form=1) + LAST + END, "3584"),
    "negative size": (
        GOOD + header("a.txt", -512) + LAST + END,
        "member 'a.txt' at byte 1024 gives a size of -512 bytes",
    ),
    "no tar": (b"PK\x03\x04".ljust(4096, b"x"), "what stands at byte 0 is no header of a member ("),
    "text": (b"not a tar", "the header at byte 0 has 9 bytes instead of 512"),
    "flipped header": (GOOD + b"m" + LAST[1:] + END, "after member 'good.txt': what stands at byte 1024 is no header"),
    "zeroed header": (
        GOOD + bytes(512) + LAST + END,
        "a block of zeros at byte 1024 ends the archive, but data follow at byte 1536",
    ),
    "two joined tars": (
        GOOD + END + LAST + END,
        "data follow at byte 2048: it was overwritten, or several tars were joined",
    ),
    "data behind the end": (GOOD + END + bytes(500_000) + b"x", "data follow at byte 502048"),
    "lost tail": (
        GOOD + bytes(12288),
        "from byte 1024 on it is 12,288 bytes of zeros, where tar programs write at most 11,264",
    ),
    "size that is no number": (
        GOOD + summed(LAST[:124] + b"99999999999\0" + LAST[136:512]) + END,
        "is no header of a member",
    ),
    "link with data": (GOOD + header("a.txt", 512, b"1") + b"x" * 512 + END, "what stands at byte 1536 is no header"),
    "PAX header over the limit": (
        GOOD + header("p", 1 << 30, b"x"),
        "the extended header at byte 1024 says that it has 1073741824 bytes; the limit is 1.0 MiB",
    ),
    "global PAX header over the limit": (GOOD + header("p", (1 << 20) + 1, b"g"), "the limit is 1.0 MiB"),
    "long name over the limit": (GOOD + header("p", 1 << 30, b"L"), "the limit is 1.0 MiB"),
    "long link over the limit": (GOOD + header("p", 1 << 30, b"K"), "the limit is 1.0 MiB"),
    "PAX header of negative size": (GOOD + header("p", -1, b"x"), "says that it has -1 bytes"),
    "PAX record without a length": (
        GOOD + pax(raw=b"path=a\n") + LAST + END,
        "the PAX header whose data start at byte 1536 is broken",
    ),
    "PAX record longer than its header": (GOOD + pax(raw=b"99 path=a\n") + LAST + END, "is broken"),
    "PAX record of no length": (GOOD + pax(raw=b"0 path=a\n") + LAST + END, "is broken"),
    "PAX record shorter than its keyword": (GOOD + pax(raw=b"3 path=a\n") + LAST + END, "is broken"),
    "PAX record without a line end": (GOOD + pax(raw=b"8 path=a") + LAST + END, "is broken"),
    "PAX size that is none": (GOOD + pax(size="-1") + LAST + END, "gives a size of '-1'"),
    "PAX size over the tar": (GOOD + pax(size="99999999999999999999") + LAST + END, "member"),
    "global PAX size": (
        GOOD + pax(b"g", size="1") + LAST + END,
        "the global header at byte 1024 gives the members' size",
    ),
    "PAX header without a member": (
        GOOD + pax(path="a.txt") + END,
        "the archive ends at byte 2048, where a member is announced",
    ),
    "long name without a member": (GOOD + long_name(b"a.txt") + END, "where a member is announced"),
    "sparse map without an end": (
        GOOD + summed(bytearray(header("a.jpg", 1, b"S"))[:482] + b"\1" + bytes(29)),
        "1536, within a member",
    ),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", FATAL)
def test_damage_is_an_error_that_names_tar_member_and_byte(write, name: str, suffix: str) -> None:
    data, message = FATAL[name]
    path = write(data, suffix)
    with pytest.raises(PackError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} is damaged or was cut short") and message in str(caught.value)


WHOLE = GOOD + member("a.pth", bytes(range(256)) * 5) + pax(path="b.txt") + member("b", b"1") + LAST


def test_every_truncation_is_an_error(write) -> None:
    for size in range(0, len(WHOLE) + 512, 3):
        with pytest.raises(PackError, match="damaged or was cut short"):
            read(write((WHOLE + END)[:size]))
    assert len(read(write(WHOLE + bytes(512)))) == 4


@pytest.mark.parametrize("suffix", [".tgz", ".tar.zst"])
def test_every_truncation_of_a_compressed_tar_is_an_error(tmp_path: Path, suffix: str) -> None:
    whole = packed(WHOLE + END, suffix)
    path = tmp_path / f"t{suffix}"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(PackError, match="damaged or was cut short"):
            read(str(path))
    path.write_bytes(whole + b"garbage")
    with pytest.raises(PackError, match="damaged or was cut short"):
        read(str(path))


def test_no_flipped_byte_of_a_header_loses_a_sample(write) -> None:
    tar = bytearray(WHOLE + END)
    expected = [sample.values for sample in read(write(bytes(tar)))]
    for at in (*range(0, 512), *range(1024, 1536), *range(len(WHOLE), len(WHOLE) + 1024)):
        tar[at] ^= 0x21
        try:
            # What follows the checksum's digits says nothing.
            assert [sample.values for sample in read(write(bytes(tar)))] == expected and 148 <= at % 1024 < 156
        except PackError as error:
            assert "damaged" in str(error)
        tar[at] ^= 0x21


def test_a_zeroed_region_loses_no_sample_in_silence(write) -> None:
    tar = b"".join(member(f"{i}.pth", b"x" * 700) for i in range(200)) + END
    for at in range(0, len(tar) - 65536, 4096):
        try:
            samples = read(write(tar[:at] + bytes(65536) + tar[at + 65536 :]))
            assert len(samples) == 200
        except PackError as error:
            assert "ends the archive, but data follow" in str(error) or "bytes of zeros" in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) + 1023), st.binary(min_size=1, max_size=12)), max_size=4), st.data()
)
def test_no_other_error_whatever_the_bytes(write, changes, data) -> None:
    tar = bytearray(WHOLE + END)
    for at, new in changes:
        tar[at : at + len(new)] = new[: len(tar) - at]
    # With checksums that fit, so that the changes get past them.
    for at in (0, 1024, 3072, 4096, 5120):
        if data.draw(st.booleans()) and any(tar[at : at + 512]):
            tar[at : at + 512] = summed(tar[at : at + 512])
    try:
        read(write(bytes(tar)))
    except PackError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_of_a_gibibyte_is_not_read(tmp_path: Path, suffix: str, kind: bytes) -> None:
    path = tmp_path / f"t{suffix}"
    bomb = GOOD + header("bomb", 1 << 30, kind)
    if suffix == ".tar":
        path.write_bytes(bomb)
        os.truncate(path, len(bomb) + (1 << 30))
    else:
        path.write_bytes(packed(bomb + bytes(64 << 20), suffix))
    other = tmp_path / "o.tgz"
    other.write_bytes(packed(GOOD + END, ".tgz"))
    read(str(other))
    tracemalloc.start()
    try:
        with pytest.raises(PackError, match=r"says that it has 1073741824 bytes; the limit is 1\.0 MiB"):
            read(str(path))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_ten_thousand_headers_of_a_mebibyte_leave_memory_flat(write, monkeypatch) -> None:
    monkeypatch.setattr(tar_archive, "MAX_EXTENSION_BYTES", 1 << 16)
    one = pax(b"g", **{f"k{i}": "v" * 1000 for i in range(60)})
    path = write(GOOD + one * 500 + LAST + END, ".tgz")
    tracemalloc.start()
    try:
        assert len(read(path)) == 2
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_members(write) -> None:
    path = write(b"".join(member(f"{i}.pth", b"x" * 5000) for i in range(2000)) + END)
    reader, [unit] = reader_of(path)
    samples = reader.read(unit)
    next(samples)
    tracemalloc.start()
    try:
        assert sum(1 for _ in samples) == 1999
        # A hash of 8 bytes a key, as an object in a set; a member that is kept would be 20 times that.
        assert tracemalloc.get_traced_memory()[1] < 2000 * 150 + (1 << 19)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_that_changes_while_it_is_read(write, suffix: str) -> None:
    tar = b"".join(member(f"{i}.pth", os.urandom(3000)) for i in range(500)) + END
    changes = (
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: os.truncate(path, 10_000),
        lambda path: os.truncate(path, 0),
    )
    for change in changes:
        path = write(tar, suffix)
        reader, [unit] = reader_of(path)
        samples = reader.read(unit)
        next(samples)
        change(path)
        with pytest.raises(PackError, match="changed while it was being packed"):
            list(samples)
    os.remove(path)
    with pytest.raises(PackError, match="vanished while it was being packed"):
        next(reader.read(unit))


def test_a_fifo_in_place_of_a_tar_is_named_at_once(write, tmp_path: Path) -> None:
    path = write(GOOD + END)
    reader, [unit] = reader_of(path)
    os.remove(path)
    os.mkfifo(path)
    with pytest.raises(PackError, match="changed while it was being packed"):
        next(reader.read(unit))
    with pytest.raises(PackError, match="is a FIFO; only regular files can be packed"):
        open_source([path])
