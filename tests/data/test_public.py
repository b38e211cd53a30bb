"""Public data sets against a server of this machine, and archives that are built here."""

import errno
import hashlib
import io
import os
import re
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from irf_lib.data import public
from irf_lib.data.layouts import check_category, list_categories, read_category
from irf_lib.data.public import SOURCES, Source, download
from irf_lib.files import InputError, RunError, read_json


def picture(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


MVTEC = {
    **{f"bottle/train/good/{n:03d}.png": picture(n) for n in range(3)},
    "bottle/test/good/000.png": picture(30),
    "bottle/test/broken/000.png": picture(31),
    "bottle/ground_truth/broken/000_mask.png": picture(9),
    "license.txt": b"licence",
}
VISA = {
    **{f"candle/Data/Images/{n}.JPG": picture(n) for n in range(3)},
    "candle/Data/Masks/2.png": picture(9),
    "split_csv/1cls.csv": b"object,split,label,image,mask\n"
    b"candle,train,normal,candle/Data/Images/0.JPG,\ncandle,test,normal,candle/Data/Images/1.JPG,\n"
    b"candle,test,anomaly,candle/Data/Images/2.JPG,candle/Data/Masks/2.png\n",
}
BTAD = {
    "BTech_Dataset_transformed/01/train/ok/0000.png": picture(1),
    "BTech_Dataset_transformed/01/test/ok/0000.png": picture(2),
    "BTech_Dataset_transformed/01/test/ko/0000.png": picture(3),
    "BTech_Dataset_transformed/01/ground_truth/ko/0000.png": picture(9),
    "__MACOSX/._BTech_Dataset_transformed": b"junk",
}


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def source_of(content: bytes, name: str, url: str = "") -> Source:
    """A source as the real one of that name, of other content."""
    return replace(SOURCES[name], n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), url=url)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != public.MARKER)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def server(monkeypatch):
    """Sends `content` with `status`, cut after `sent` bytes where that is not None; counts what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content[: self.server.sent])

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.status, server.sent, server.asked = b"", 200, None, 0
        server.url = f"http://127.0.0.1:{server.server_port}/archive"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def visa(server) -> Source:
    server.content = tar(VISA)
    return source_of(server.content, "visa", server.url)


def message(function, *arguments) -> str:
    """The one sentence in which the call fails."""
    with pytest.raises((InputError, RunError)) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["mvtec_ad", "visa", "btad"])
@pytest.mark.parametrize("own", [False, True], ids=["fetched", "own file"])
def test_each_data_set_becomes_a_folder_that_the_reader_knows(tmp_path, server, capfd, name, own):
    files = {"mvtec_ad": MVTEC, "visa": VISA, "btad": BTAD}[name]
    server.content = {"mvtec_ad": lambda f: tar(f, "w:xz"), "visa": tar, "btad": zipped}[name](files)
    source = source_of(server.content, name, "" if own else server.url)
    mine = tmp_path / "renamed by my browser"
    mine.write_bytes(server.content)
    root = download(source, tmp_path / "sets" / name, mine if own else None)
    layout, category = {"mvtec_ad": ("mvtec", "bottle"), "visa": ("visa", "candle"), "btad": ("btad", "01")}[name]
    assert list_categories(root) == (category,)
    found = read_category(root, category)
    assert check_category(found) == [] and found.layout == layout and found.has_masks
    expected = {key.removeprefix("BTech_Dataset_transformed/"): value for key, value in files.items() if key[0] != "_"}
    assert tree(root) == expected
    record = read_json(root / public.MARKER)
    assert record["sha256"] == source.sha256 and record["licence"] == source.licence
    assert server.asked == (not own) and mine.exists()
    assert list((tmp_path / "sets").iterdir()) == [root], "what was on its way is removed"
    assert os.access(next(root.rglob("*.png")), os.W_OK)
    assert own or "100%" in capfd.readouterr().err, "a bar shows how far it is"


def test_a_finished_data_set_is_left_alone_and_nobody_elses_folder_is_used(tmp_path, server, visa):
    (tmp_path / "set").mkdir()  # an empty folder is as good as none
    root = download(visa, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert public.is_finished(visa, root) and download(visa, root) == root and server.asked == 1
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"dear to me")
    for source, folder in ((visa, tmp_path / "mine"), (replace(visa, sha256="0" * 64), root)):
        before = tree(folder)
        assert "--to" in message(download, source, folder) and tree(folder) == before
    assert server.asked == 1


def test_an_archive_that_was_whole_is_not_fetched_again(tmp_path, server, visa, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        assert "(No space left on device): check free space" in message(download, visa, tmp_path / "set")
    assert tree(tmp_path) == {f"set.download/{visa.archive}": server.content}
    assert tree(download(visa, tmp_path / "set")) == VISA and server.asked == 1


@pytest.mark.parametrize("status, sent, word", [(404, None, "404"), (503, None, "503"), (200, 5000, "broken")])
def test_a_server_that_fails_is_one_sentence(tmp_path, server, visa, status, sent, word):
    server.status, server.sent = status, sent
    said = message(download, visa, tmp_path / "set")
    assert all(part in said for part in (word, visa.url, visa.home, "run this again", "--archive"))
    assert "refused" in message(download, replace(visa, url="http://127.0.0.1:1/archive"), tmp_path / "set")
    assert not tree(tmp_path)
    server.status, server.sent = 200, None
    assert tree(download(visa, tmp_path / "set")) == VISA


def test_a_wrong_hash_is_not_used(tmp_path, server, visa):
    right, server.content = server.content, b"<html>please log in</html>"
    found = hashlib.sha256(server.content).hexdigest()
    said = message(download, visa, tmp_path / "set")
    assert found in said and visa.sha256 in said and not tree(tmp_path)
    mine = tmp_path / "mine.tar"
    mine.write_bytes(server.content)
    said = message(download, visa, tmp_path / "set", mine)
    assert all(word in said for word in (found, visa.sha256, str(mine), visa.home))
    assert list(tree(tmp_path)) == ["mine.tar"]
    server.content = right
    assert tree(download(visa, tmp_path / "set")) == VISA


def test_an_archive_writes_nothing_beside_its_folder(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(tar(VISA | {"../../out.txt": b"x"}))
    with pytest.raises(tarfile.OutsideDestinationError):
        download(source_of(mine.read_bytes(), "visa"), tmp_path / "sets" / "new", mine)
    assert sorted(tmp_path.rglob("*")) == [mine, tmp_path / "sets"]
    mine.write_bytes(zipped(BTAD | {"../../out.txt": b"x", str(tmp_path / "out.txt"): b"x"}))
    root = download(source_of(mine.read_bytes(), "btad"), tmp_path / "sets" / "new", mine)
    assert sorted({*tmp_path.rglob("*")} - {*root.rglob("*")}) == [mine, root.parent, root]


def test_every_source_says_where_from_and_on_which_terms():
    for name, source in SOURCES.items():
        text = public.notice(source)
        assert source.name == name and re.fullmatch("[0-9a-f]{64}", source.sha256)
        assert all(part in text for part in (source.licence, source.citation, source.url or source.home))
    assert "CC BY-NC-SA 4.0" in public.notice(SOURCES["mvtec_ad"]) and "unsure" in SOURCES["btad"].licence


def test_a_source_behind_a_form_is_explained(tmp_path):
    said = message(download, SOURCES["mvtec_ad"], tmp_path / "set")
    assert "at https://www.mvtec.com/company/" in said and said.endswith("mvtec_anomaly_detection.tar.xz")
    assert "gone: no such file" in message(download, SOURCES["mvtec_ad"], tmp_path / "set", tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
