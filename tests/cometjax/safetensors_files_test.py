import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from cometjax import safetensors_files
from data_pipeline.errors import UserError

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # its bytes lie in another order
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "c": np.zeros((0, 3), np.float16),
    "d": np.float64(3.25).reshape(()),
}


@pytest.mark.parametrize(("limit", "files"), [(10**6, 1), (52, 2), (1, 4)])
def test_arrays_come_back_bitwise_from_one_file_or_several(tmp_path: pathlib.Path, limit: int, files: int) -> None:
    made = safetensors_files.write(tmp_path, TENSORS, max_file_bytes=limit)
    assert sorted(made) == sorted(path.name for path in tmp_path.iterdir())
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    again = safetensors_files.read(tmp_path)
    assert again.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)
    if files > 1:
        index = json.loads((tmp_path / safetensors_files.INDEX).read_text())
        assert index["metadata"]["total_size"] == 48 + 4 + 8
        assert set(index["weight_map"].values()) == {path.name for path in tmp_path.glob("*.safetensors")}


def test_the_bytes_are_those_of_the_format(tmp_path: pathlib.Path) -> None:
    safetensors_files.write(tmp_path, {"w": np.array([[1, 2]], np.float32)}, max_file_bytes=100)
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert json.loads(content[8 : 8 + length])["w"] == {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    assert content[8 + length :] == np.array([1, 2], "<f4").tobytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-1], "cut short"),
        (lambda content: content + b"x", "bytes too many"),
        (lambda content: b"\xff" * 8 + content[8:], "not a safetensors file"),
        (lambda content: content[:8] + b"x" + content[9:], "not a safetensors file"),
        (lambda content: content.replace(b"F64", b"I64"), r"tensor d: dtype I64 cannot be read"),
        (lambda content: content.replace(b"[4,3]", b"[4,4]"), r"tensor a: 48 bytes for shape \[4, 4\]"),
        (lambda content: b"", "cannot be read|not a safetensors file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: pathlib.Path, damage, says: str) -> None:
    safetensors_files.write(tmp_path, TENSORS, max_file_bytes=10**6)
    path = tmp_path / safetensors_files.SINGLE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=says) as refused:
        safetensors_files.read(tmp_path)
    assert str(path) in str(refused.value)


def test_a_missing_file_of_several_is_named(tmp_path: pathlib.Path) -> None:
    safetensors_files.write(tmp_path, TENSORS, max_file_bytes=1)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00004\.safetensors: cannot be read"):
        safetensors_files.read(tmp_path)
