"""The version of shardload; it also stands in every manifest, as bytes depend on it."""

VERSION = "0.1.0"
