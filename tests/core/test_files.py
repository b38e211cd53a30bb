"""Files are whole or absent; a tensor file that was touched is refused."""

import os
import random
import stat

import torch

from irf_lib.files import RunError, load_tensors, printable, save_tensors, write_atomically, write_json

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 2)}


def test_tensors_and_their_meta_come_back(tmp_path):
    path = save_tensors(tmp_path / "sub" / "m.safetensors", TENSORS, {"x": [1, "é"]})
    tensors, meta = load_tensors(path)
    assert meta == {"x": [1, "é"]} and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], one) and tensors[name].dtype == one.dtype for name, one in TENSORS.items())
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~(umask := os.umask(0)) and os.umask(umask) == 0


def test_no_flipped_bit_passes(tmp_path, refused):
    path = save_tensors(tmp_path / "m.safetensors", TENSORS, {"t": 200})
    content, rng = path.read_bytes(), random.Random(0)
    for place in {*range(8), *rng.sample(range(len(content)), min(200, len(content)))}:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused("m.safetensors", load_tensors, path)


def test_truncated_foreign_and_missing_files_are_refused(tmp_path, refused):
    from safetensors.torch import save_file

    path = save_tensors(tmp_path / "m.safetensors", TENSORS, {})
    whole = path.read_bytes()
    for content in (b"", b"no model", whole[:50], whole[:-1], whole + b"x"):
        path.write_bytes(content)
        refused("damaged", load_tensors, path)
    save_file(TENSORS, path)
    refused("not written by irf_lib", load_tensors, path)
    refused("there is no such file", load_tensors, tmp_path / "nothing")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, refused):
    path = write_json(tmp_path / "a.json", "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    refused("No space left on device run the same command again", write_atomically, path, fail, kind=RunError)
    assert path.read_text() == '"old"\n' and list(tmp_path.iterdir()) == [path]
    refused("cannot be written", write_json, path / "below.json", "x", kind=RunError)


def test_names_are_printable():
    assert printable(os.fsdecode(b"a\xff\x1b[31m.png")) == r"a\xff\x1b[31m.png"
    assert printable("Größe.png") == "Größe.png"
