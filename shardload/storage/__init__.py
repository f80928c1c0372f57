"""Bytes of files: everything that touches a file system goes through here."""

from shardload.storage.base import Storage, StoredFile
from shardload.storage.local import FileReader, FileWriter, LocalStorage
from shardload.storage.mapping import MappedFiles
from shardload.storage.operations import OPERATIONS, Operations

__all__ = [
    "OPERATIONS",
    "FileReader",
    "FileWriter",
    "LocalStorage",
    "MappedFiles",
    "Operations",
    "Storage",
    "StoredFile",
]
