"""Files are whole or absent."""

import errno
import json

import pytest
import torch

from irf_lib.storage import (
    StorageError,
    load_tensors,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a" / "b.csv", "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"b.csv cannot be written \(No space left on device\): free some space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["b.csv"], "no temporary file stays behind"


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_tensors_round_trip_and_replace(tmp_path):
    path = tmp_path / "model.json"
    for value in (1.0, 2.0):
        save_tensors(path, {"w": torch.full((3,), value), "n": torch.tensor(7)}, {"step": value})
    tensors, meta = load_tensors(path)
    assert torch.equal(tensors["w"], torch.full((3,), 2.0)) and meta == {"step": 2.0}
    assert len(list(tmp_path.iterdir())) == 2, "the file of the first save is gone"


def test_shared_and_strided_tensors_are_saved(tmp_path):
    w = torch.arange(6.0).view(2, 3)
    save_tensors(tmp_path / "m.json", {"a": w, "b": w, "c": w.T}, {})
    assert torch.equal(load_tensors(tmp_path / "m.json")[0]["c"], w.T)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "json", "foreign"])
def test_damage_is_noticed(tmp_path, damage):
    path = save_tensors(tmp_path / "model.json", {"w": torch.arange(100.0)}, {})
    file = tmp_path / json.loads(path.read_text())["tensors"]
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    elif damage == "json":
        path.write_text("{")
    else:
        path.write_text('{"weights": 1}')
    with pytest.raises(StorageError, match="model"):
        load_tensors(path)


def test_a_json_cannot_name_a_file_elsewhere(tmp_path):
    outside = save_tensors(tmp_path / "outside.json", {"w": torch.zeros(1)}, {})
    content = read_json(outside)
    inner = tmp_path / "inner"
    write_json(inner / "model.json", content | {"tensors": f"../{content['tensors']}"})
    with pytest.raises(StorageError, match="missing"):
        load_tensors(inner / "model.json")
