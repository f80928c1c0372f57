from __future__ import annotations

import ctypes
import os
import pickle
import re
import shutil
import socket
from pathlib import Path

import pytest

from shardload.errors import FormatError, PackError
from shardload.importers import Reject, Sample, folder, open_source
from shardload.importers.folder import TEXT_SUFFIXES

JPEG = b"\xff\xd8\xff\xe0jpeg"
PNG = b"\x89PNG\r\n\x1a\npng"


def test_texts_in_the_order_of_the_bytes_of_their_paths(tree, read_all) -> None:
    # By bytes: "B" < "a" < "é", and "a-b" < "a/b" since "-" < "/".
    names = ["B.txt", "a-b/1.py", "a/b.md", "a.rst", "é.txt"]
    root = tree({name: f"text of {name}".encode() for name in names})
    plan, units = read_all(root, unit_size=30)
    assert plan.types == {"text": "str", "path": "str"} and plan.metadata == {}
    assert len(units) > 1
    read = [sample for unit in units for sample in unit]
    assert [sample["path"] for sample in read] == sorted(names, key=str.encode)
    assert all(sample["text"] == f"text of {sample['path']}" for sample in read)
    assert plan.num_bytes == sum(len(sample["text"].encode()) for sample in read)


@pytest.mark.parametrize(
    ("names", "data", "types"),
    [
        (["a.jpg", "b.JPEG"], JPEG, {"image": "jpeg", "path": "str"}),
        (["a.png", "b.PNG"], PNG, {"image": "png", "path": "str"}),
        (["a.py", "b.JSON", "c.h"], b"x", {"text": "str", "path": "str"}),
        (["a.bin", "b", "Makefile"], b"\xff", {"data": "bytes", "path": "str"}),
    ],
)
def test_kind_from_the_suffixes(tree, read_all, names: list[str], data: bytes, types: dict[str, str]) -> None:
    plan, units = read_all(tree(dict.fromkeys(names, data)))
    assert plan.types == types
    content = data.decode() if "text" in types else data
    assert [next(iter(sample.values())) for sample in units[0]] == [content] * len(names)


def test_text_suffixes_are_what_the_documentation_promises() -> None:
    assert {".txt", ".md", ".rst", ".py", ".json", ".html", ".csv", ".c", ".h", ".js"} <= TEXT_SUFFIXES


def test_labels_from_the_first_sub_folder(tree, read_all) -> None:
    root = tree({"dog/1.jpg": JPEG, "cat/deep/2.jpg": JPEG, "ant/3.jpg": JPEG})
    plan, units = read_all(root)
    assert plan.types == {"image": "jpeg", "label": "int64", "path": "str"}
    assert plan.metadata == {"classes": ["ant", "cat", "dog"]}
    assert [(sample["path"], sample["label"]) for sample in units[0]] == [
        ("ant/3.jpg", 0),
        ("cat/deep/2.jpg", 1),
        ("dog/1.jpg", 2),
    ]


def test_no_label_if_a_file_lies_outside(tree, read_all) -> None:
    plan, _ = read_all(tree({"dog/1.jpg": JPEG, "2.jpg": JPEG}))
    assert "label" not in plan.types and plan.metadata == {}


def test_too_many_class_names_are_refused_before_anything_is_read(tree, monkeypatch) -> None:
    monkeypatch.setattr(folder, "_MAX_CLASSES_BYTES", 20)
    root = tree({f"class{number}/a.txt": b"" for number in range(3)})
    with pytest.raises(PackError, match=r"names of its 3 sub-folders.* are 28 bytes .* a manifest holds 1 MiB"):
        open_source([root]).plan(None, None)


def test_mixture_names_counts_and_ways_out(tree) -> None:
    root = tree({"a.jpg": JPEG, "b.jpg": JPEG, "c.txt": b"", "d": b""})
    with pytest.raises(PackError) as caught:
        open_source([root]).plan(None, None)
    message = str(caught.value)
    assert "2 .jpg, 1 .txt, 1 no suffix" in message and "--include '*.jpg'" in message
    assert """--schema '{"data": "bytes"}'""" in message


def test_jpeg_and_png_together_only_as_bytes(tree, read_all) -> None:
    root = tree({"a.jpg": JPEG, "b.png": PNG})
    with pytest.raises(PackError, match=re.escape("""--schema '{"image": "bytes"}'""")):
        open_source([root]).plan(None, None)
    plan, units = read_all(root, types={"image": "bytes"})
    assert plan.types == {"image": "bytes", "path": "str"}
    assert [sample["image"] for sample in units[0]] == [JPEG, PNG]
    assert read_all(root, include=["*.png"])[0].types == {"image": "png", "path": "str"}


def test_given_types_replace_inferred_ones(tree, read_all) -> None:
    root = tree({"d/a.txt": b"\xff"})
    plan, units = read_all(root, types={"label": "uint8", "text": "bytes"})
    assert plan.types == {"text": "bytes", "label": "uint8", "path": "str"}
    assert units == [[{"text": b"\xff", "label": 0, "path": "d/a.txt"}]]
    assert read_all(root, types={"data": "bytes"})[0].types == {"data": "bytes", "label": "int64", "path": "str"}


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"caption": "str"}, "field 'caption' is in the schema, but this folder gives text, path"),
        ({"label": "int64"}, "field 'label' is in the schema, but this folder gives text, path"),
        ({"text": "int64"}, "field 'text' cannot be int64; of a folder it is one of bytes, str,"),
        ({"path": "bytes"}, "field 'path' cannot be bytes; of a folder it is one of str"),
        ({"text": "str", "image": "jpeg"}, "names image and text, but a file's content goes into one field"),
    ],
)
def test_types_a_folder_has_no_value_for(tree, types: dict[str, str], message: str) -> None:
    with pytest.raises(PackError, match=re.escape(message)):
        open_source([tree({"a.txt": b""})]).plan(types, None)


def test_unknown_type_is_refused(tree) -> None:
    with pytest.raises(FormatError, match="unknown type 'string'"):
        open_source([tree({"a.txt": b""})]).plan({"text": "string"}, None)


def test_hidden_files_and_links_to_folders_are_left_out_and_counted(tree, read_all, tmp_path: Path) -> None:
    root = tree({"a.txt": b"a", ".b.txt": b"b", ".git/c.txt": b"c", "d/.e/f.txt": b"f", "g.md": b"g"})
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", f"{root}/link")
    os.symlink(root, f"{root}/d/loop")
    source = open_source([root], ["*.txt", "l*"])
    assert source.skipped == {"hidden": 3, "links to directories": 2, "not included": 1}
    _, units = read_all(root, include=["*.txt", "l*"])
    assert [sample["path"] for sample in units[0]] == ["a.txt"]
    _, units = read_all(root, include=[".*", ".git/*", "d/.e/*"])
    assert [sample["path"] for sample in units[0]] == [".b.txt", ".git/c.txt", "d/.e/f.txt"]


def test_links_to_files_are_followed(tree, read_all, tmp_path: Path) -> None:
    root = tree({"a.txt": b"inside"})
    (tmp_path / "outside.txt").write_bytes(b"outside")
    os.symlink("a.txt", f"{root}/b.txt")
    os.symlink(tmp_path / "outside.txt", f"{root}/c.txt")
    _, units = read_all(root)
    assert [sample["text"] for sample in units[0]] == ["inside", "inside", "outside"]


def make_fifo(path: str) -> None:
    os.mkfifo(path)


def make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        # The name of a socket is short: bind it where it is to lie.
        before = Path.cwd()
        os.chdir(os.path.dirname(path))
        try:
            bound.bind(os.path.basename(path))
        finally:
            os.chdir(before)


def make_loop(path: str) -> None:
    os.symlink(path, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_fifo, "x.txt is a FIFO; only regular files can be packed"),
        (make_socket, "x.txt is a socket; only"),
        (make_loop, "x.txt is a link in a loop of links"),
        (lambda path: os.symlink("/dev/null", path), "x.txt is a character device; only"),
        (lambda path: os.symlink("nowhere", path), "x.txt is a link that leads nowhere"),
    ],
)
def test_what_is_no_regular_file_is_named(tree, read_all, make, message: str) -> None:
    root = tree({"a.txt": b"", "d/b.txt": b""})
    make(f"{root}/d/x.txt")
    with pytest.raises(PackError, match=re.escape(f"{root}/d/{message}")):
        read_all(root)
    # Left out, it is nobody's concern.
    assert open_source([root], ["a*", "b*"]).skipped == {"not included": 1}


def test_file_name_that_is_not_utf8(tree, read_all) -> None:
    root = tree({"a.txt": b""})
    Path(os.fsdecode(root.encode() + b"/b\xff.txt")).write_bytes(b"")
    with pytest.raises(PackError, match=re.escape(r"b'b\xff.txt' is a file name that is not UTF-8")):
        read_all(root)
    assert open_source([root], ["a*"]).skipped == {"not included": 1}


@pytest.mark.parametrize("data", [b"ok\xff", "héé".encode("latin-1"), b"cut \xe2\x82"])
def test_text_that_is_not_utf8_names_file_and_byte(tree, read_all, data: bytes) -> None:
    root = tree({"a.txt": b"", "b.txt": data})
    at = next(i for i, byte in enumerate(data) if byte > 127)
    with pytest.raises(PackError) as caught:
        read_all(root)
    assert f"{root}/b.txt is not UTF-8: byte {at} is {data[at]:#04x}" in str(caught.value)
    assert """--schema '{"text": "bytes"}'""" in str(caught.value)


def test_text_comes_through_unchanged(tree, read_all) -> None:
    data = "\ufeffa\r\nb\rc\0\n\u2028é".encode()
    assert read_all(tree({"a.txt": data}))[1][0][0]["text"].encode() == data


def test_file_that_cannot_be_read_at_all(tree, read_all) -> None:
    # Opens, is a regular file of 0 bytes, and fails at the first read: for every user, root included.
    root = tree({"a.bin": b""})
    os.symlink("/proc/self/mem", f"{root}/b.bin")
    with pytest.raises(PackError, match=re.escape(f"{root}/b.bin cannot be read: Input/output error")):
        read_all(root)


class WithoutOverride:
    """Takes from this process the right of root to read everything."""

    def __enter__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        self.before = (ctypes.c_uint32 * 6)()
        assert self.libc.capget(self.header, self.before) == 0
        lowered = (ctypes.c_uint32 * 6)(*self.before)
        lowered[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, in the effective set
        assert self.libc.capset(self.header, lowered) == 0

    def __exit__(self, *error: object) -> None:
        assert self.libc.capset(self.header, self.before) == 0


def test_file_and_folder_without_permission(tree, read_all) -> None:
    root = tree({"a.txt": b"", "d/b.txt": b""})
    os.chmod(f"{root}/a.txt", 0)
    with (
        WithoutOverride(),
        pytest.raises(PackError, match=re.escape(f"{root}/a.txt cannot be read: Permission denied")),
    ):
        read_all(root)
    os.chmod(f"{root}/d", 0)
    try:
        with (
            WithoutOverride(),
            pytest.raises(PackError, match=re.escape(f"{root}/d/ cannot be read: Permission denied")),
        ):
            open_source([root])
    finally:
        os.chmod(f"{root}/d", 0o755)


def change_nothing_but_time(path: str) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: Path(path).write_bytes(b"longer than before"),
            "changed while it was being packed: it had 3 bytes",
        ),
        (lambda path: Path(path).write_bytes(b""), "changed while it was being packed: it had 3 bytes and now has 0"),
        (os.unlink, "vanished while it was being packed"),
        (lambda path: (os.unlink(path), os.mkfifo(path)), "changed while it was being packed"),
        (change_nothing_but_time, "changed while it was being packed: it was written to after the source was scanned"),
    ],
)
def test_file_that_changes_after_the_scan(tree, samples, change, message: str) -> None:
    root = tree({"a.txt": b"abc", "b.txt": b"abc"})
    plan = open_source([root]).plan(None, None)
    change(f"{root}/b.txt")
    read = samples(plan.reader, plan.units[0])
    assert next(read).values["text"] == "abc"
    with pytest.raises(PackError, match=re.escape(f"{root}/b.txt {message}")):
        next(read)


def test_file_that_grows_after_it_was_opened_is_noticed(tree, samples) -> None:
    # /proc files have no size: what is read is more than was promised.
    root = tree({})
    os.symlink("/proc/version", f"{root}/a.txt")
    plan = open_source([root]).plan(None, None)
    with pytest.raises(PackError, match="changed while it was being packed: it had 0 bytes and now has more"):
        list(samples(plan.reader, plan.units[0]))


def test_what_is_no_sample_is_named_and_the_rest_is_read(tree) -> None:
    """Found by the scan or while reading, in the order of the paths; the rest keeps its labels."""
    root = tree({"d/a.txt": b"1", "d/c.txt": b"\xff", "d/e.txt": b"2", "d/g.txt": b"3", "z/h.txt": b"4"})
    os.mkfifo(f"{root}/b.txt")
    Path(os.fsdecode(root.encode() + b"/d/f\n\xff.txt")).write_bytes(b"")
    make_loop(f"{root}/d/d\n.txt")
    plan = open_source([root]).plan(None, None)
    assert plan.reject is not None and plan.reject.message.startswith("" + root + "/b'd/f\\n\\xff.txt' is a file name")
    os.unlink(f"{root}/d/e.txt")
    items = list(plan.reader.read(plan.units[0]))
    assert [item.values for item in items if isinstance(item, Sample)] == [
        {"text": str(number), "label": label, "path": path}
        for number, label, path in ((1, 0, "d/a.txt"), (3, 0, "d/g.txt"), (4, 1, "z/h.txt"))
    ]
    assert [item.message.removeprefix(f"{root}/") for item in items if isinstance(item, Reject)] == [
        "b'd/f\\n\\xff.txt' is a file name that is not UTF-8; rename it, or leave it out with exclude patterns",
        "b.txt is a FIFO; only regular files can be packed",
        'd/c.txt is not UTF-8: byte 0 is 0xff; to keep the bytes as they are, give --schema \'{"text": "bytes"}\'',
        "d/d\n.txt is a link in a loop of links",
        "d/e.txt vanished while it was being packed",
    ]


def test_a_folder_that_is_gone_is_more_than_a_lost_file(tree) -> None:
    root = tree({"a.txt": b"1"})
    plan = open_source([root]).plan(None, None)
    shutil.rmtree(root)
    with pytest.raises(PackError, match=r"a\.txt vanished while it was being packed, and so did"):
        list(plan.reader.read(plan.units[0]))


def test_nothing_to_pack(tree) -> None:
    root = tree({".a": b"", "b.txt": b""})
    with pytest.raises(PackError, match=re.escape(f"{root} holds no file to pack; left out: 1 hidden, 1 not included")):
        open_source([root], ["*.py"])


def test_reader_and_units_are_small_pickles(tree) -> None:
    plan = open_source([tree({f"{number:04d}.txt": b"" for number in range(500)})]).plan(None, None)
    assert len(pickle.dumps(plan.reader)) < 1000
    read = [sample.values["path"] for sample in pickle.loads(pickle.dumps(plan.reader)).read(plan.units[0])]
    assert len(read) == 500


def test_excluded_files_and_folders_are_left_out_and_counted(tree):
    root = tree({"a.txt": b"", "b.txt": b"", "old/c.txt": b"", "old/deep/d.txt": b"", "new/e.txt": b""})
    source = open_source([root], ["*.txt"], ["old", "b.*"])
    plan = source.plan(None, None)
    assert [sample.values["path"] for unit in plan.units for sample in plan.reader.read(unit)] == ["a.txt", "new/e.txt"]
    assert source.skipped == {"excluded": 2}
