"""What Hugging Face's datasets write beside Arrow: which files a saved dataset is made of, and what columns mean."""

from __future__ import annotations

import json
import os
from typing import Any

from shardload.errors import PackError
from shardload.format.schema import canonical_json
from shardload.importers.files import Root, read_small

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_MAX_JSON_BYTES = 16 << 20
# What is left of a manifest's 1 MiB for everything else is more than enough.
_MAX_CLASSES_BYTES = 900 << 10


def saved_files(root: Root, location: str) -> list[str]:
    """Returns the files of a dataset that `save_to_disk` wrote into a folder, in order; none if it is no such folder.

    Args:
        root: the folder.
        location: what to call it in messages.

    Raises:
        PackError: it holds several splits, or names files that cannot be its own.
    """
    splits = _read(root, _SPLITS).get("splits")
    if isinstance(splits, list) and splits:
        names = ", ".join(map(str, splits))
        raise PackError(
            f"{location} holds the splits {names:.200}: choose one, such as {os.path.join(location, str(splits[0]))}"
        )
    path = os.path.join(location, _STATE)
    state = _read(root, _STATE)
    if "_data_files" not in state:
        return []
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise PackError(f"{path} selects rows by a file of indices: save the dataset again after flatten_indices()")
    try:
        files = [entry["filename"] for entry in state["_data_files"]]
        sound = all(
            isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..") for name in files
        )
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise PackError(f"{path} names data files that cannot be those of a saved dataset")
    if not files:
        raise PackError(f"{location} is a saved dataset without data: no sample to pack")
    return files


def features_of(schema: Any) -> dict[str, Any]:
    """Returns what the schema of a file says of its columns for datasets: column -> feature."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def array_type(feature: Any) -> str:
    """Returns the type of a feature such as Array2D, whose shape its column does not have; nothing for others."""
    if not isinstance(feature, dict) or feature.get("_type") not in ("Array2D", "Array3D", "Array4D", "Array5D"):
        return ""
    shape = feature.get("shape")
    if not isinstance(shape, list) or not all(isinstance(one, int) for one in shape[1:]):
        return ""
    return f"{feature.get('dtype')}[{','.join('*' if one is None else str(one) for one in shape)}]"


def class_names(schema: Any) -> dict[str, list[str]]:
    """Returns the names of the classes of each column of labels."""
    found = {
        name: feature["names"]
        for name, feature in features_of(schema).items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    return {
        name: names
        for name, names in found.items()
        if all(isinstance(one, str) for one in names) and len(canonical_json(names)) <= _MAX_CLASSES_BYTES
    }


def _read(root: Root, path: str) -> dict[str, Any]:
    """Returns the object in a small JSON file; an empty one if there is none."""
    try:
        found = json.loads(read_small(root, path, _MAX_JSON_BYTES) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
