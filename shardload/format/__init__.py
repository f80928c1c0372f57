"""Bytes to values and back, as FORMAT.md says. No I/O, no threads, no torch."""
