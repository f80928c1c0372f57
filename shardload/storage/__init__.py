"""Bytes of files: everything that touches a file system or an object store goes through here."""

from shardload.storage.answers import AnswerError, UnavailableError
from shardload.storage.base import Storage, StoredFile
from shardload.storage.cached import CachedFile, CachedStorage
from shardload.storage.choose import is_far, local_path, storage_of, upload_storage_of
from shardload.storage.local import FileReader, FileWriter, LocalStorage
from shardload.storage.mapping import MappedFiles
from shardload.storage.operations import OPERATIONS, Operations
from shardload.storage.remote import RemoteFile, RemoteStorage
from shardload.storage.retrying import RetryingStorage
from shardload.storage.schedule import RetryPolicy
from shardload.storage.secrets import shown
from shardload.storage.stopping import Stop, heed
from shardload.storage.uploading import UploadStorage

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
    "Stop",
    "Storage",
    "StoredFile",
    "UnavailableError",
    "UploadStorage",
    "heed",
    "is_far",
    "local_path",
    "shown",
    "storage_of",
    "upload_storage_of",
]
