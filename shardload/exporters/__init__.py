"""Datasets as files of other projects."""

from shardload.exporters.export import DEFAULT_FILE_SIZE, FORMATS, ExportSummary, export, open_to_export
from shardload.exporters.progress import ExportProgress

__all__ = ["DEFAULT_FILE_SIZE", "FORMATS", "ExportProgress", "ExportSummary", "export", "open_to_export"]
