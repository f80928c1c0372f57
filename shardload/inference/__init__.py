"""Results of a scan, written back by all ranks as parts of one dataset."""

from shardload.inference.scan_writer import ScanWriter

__all__ = ["ScanWriter"]
