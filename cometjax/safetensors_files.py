"""Named arrays in safetensors files, as transformers writes and reads them: one file, or several with an index.

A file is eight bytes (the header's length, little-endian), a JSON header {name: {dtype, shape, data_offsets}}, and the
arrays one after another, in C order (https://github.com/huggingface/safetensors, "Format"). Arrays read are mapped, not
copied: what is not touched is not read.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from data_pipeline.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8  # of the header's end, as the reference implementation pads it


def write(folder: pathlib.Path, tensors: Mapping[str, np.ndarray], *, max_file_bytes: int) -> list[str]:
    """Write floating-point arrays into `folder`; returns the names of the files made, the index's last.

    Arrays follow one another in the order given; a file is closed before it would exceed `max_file_bytes`, which a
    single array may.
    """
    parts = _parts(tensors, max_file_bytes)
    if len(parts) == 1:
        _write_file(folder / SINGLE, parts[0])
        return [SINGLE]
    files = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        _write_file(folder / file, part)
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
        "weight_map": {name: file for file, part in zip(files, parts, strict=True) for name in part},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [*files, INDEX]


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of `folder`, read-only, by name.

    Raises:
      UserError: there is no such file, or one that is cut short, damaged, or lacks what the index says it has.
    """
    if (folder / INDEX).exists():
        weight_map = _index(folder / INDEX)
        tensors: dict[str, np.ndarray] = {}
        for file in sorted(set(weight_map.values())):
            tensors |= dict(_read_file(folder / file))
        if tensors.keys() != weight_map.keys():
            name = min(tensors.keys() ^ weight_map.keys())
            raise UserError(f"does not agree with its files on tensor {name}", where=str(folder / INDEX), fix=_FIX)
        return tensors
    return dict(_read_file(folder / SINGLE))


_FIX = "export it again"


def _parts(tensors: Mapping[str, np.ndarray], max_file_bytes: int) -> list[dict[str, np.ndarray]]:
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if parts[-1] and size + array.nbytes > max_file_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = array
        size += array.nbytes
    return parts


def _write_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    # transformers refuses a file whose metadata do not name a framework.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, array in tensors.items():
        stop = start + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in tensors.values():
            # Many arrays here are transposed views: their bytes lie in another order than the format's.
            file.write(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        file.flush()
        os.fsync(file.fileno())


def _read_file(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        data = np.memmap(path, np.uint8, mode="r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        body = data[8 + length :]
        if max((entry["data_offsets"][1] for entry in entries.values()), default=0) != len(body):
            raise UserError("is cut short or has bytes too many", where=str(path), fix=_FIX)
        for name, entry in entries.items():
            yield name, _tensor(path, name, entry, body)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), fix="give a whole folder") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("is not a safetensors file", where=str(path), fix=_FIX) from error


def _tensor(path: pathlib.Path, name: str, entry: Mapping[str, Any], body: np.ndarray) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise UserError(f"dtype {entry['dtype']} cannot be read", where=f"{path}, tensor {name}", fix=f"known: {known}")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if start < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{stop - start} bytes for shape {list(shape)}", where=f"{path}, tensor {name}", fix=_FIX)
    return body[start:stop].view(dtype).reshape(shape)


def _index(path: pathlib.Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("is not an index of safetensors files", where=str(path), fix=_FIX) from error
