"""Bytes of files: everything that touches a file system or an object store goes through here."""

from shardload.storage.answers import AnswerError, UnavailableError
from shardload.storage.base import Storage, StoredFile
from shardload.storage.cached import CachedFile, CachedStorage
from shardload.storage.choose import local_path, storage_of
from shardload.storage.local import FileReader, FileWriter, LocalStorage
from shardload.storage.mapping import MappedFiles
from shardload.storage.operations import OPERATIONS, Operations
from shardload.storage.remote import RemoteFile, RemoteStorage
from shardload.storage.retrying import RetryingStorage
from shardload.storage.schedule import RetryPolicy

__all__ = [
    "OPERATIONS",
    "AnswerError",
    "CachedFile",
    "CachedStorage",
    "FileReader",
    "FileWriter",
    "LocalStorage",
    "MappedFiles",
    "Operations",
    "RemoteFile",
    "RemoteStorage",
    "RetryPolicy",
    "RetryingStorage",
    "Storage",
    "StoredFile",
    "UnavailableError",
    "local_path",
    "storage_of",
]
