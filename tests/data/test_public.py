"""Public data sets against a server of this machine, and archives that are built here."""

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
    "candle/Data/Images/Normal/0000.JPG": picture(1),
    "candle/Data/Images/Normal/0001.JPG": picture(2),
    "candle/Data/Images/Anomaly/000.JPG": picture(3),
    "candle/Data/Masks/Anomaly/000.png": picture(9),
    "split_csv/1cls.csv": b"object,split,label,image,mask\n"
    b"candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"
    b"candle,test,normal,candle/Data/Images/Normal/0001.JPG,\n"
    b"candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n",
}
BTAD = {
    "BTech_Dataset_transformed/01/train/ok/0000.png": picture(1),
    "BTech_Dataset_transformed/01/test/ok/0000.png": picture(2),
    "BTech_Dataset_transformed/01/test/ko/0000.png": picture(3),
    "BTech_Dataset_transformed/01/ground_truth/ko/0000.png": picture(9),
    "__MACOSX/._BTech_Dataset_transformed": b"junk",
}


def tar(files: dict[str, bytes], mode: str = "w", *others: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            archive.addfile(member, io.BytesIO(content))
        for member in others:
            archive.addfile(member)
    return file.getvalue()


def zipped(files: dict[str, bytes], *others: zipfile.ZipInfo) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for member in others:
            archive.writestr(member, b"target")
    return file.getvalue()


def special(name: str, kind: bytes, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return tar(VISA, "w", member)


def source_of(content: bytes, name: str, url: str = "") -> Source:
    """A source as the real one of that name, of other content."""
    return replace(SOURCES[name], n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), url=url)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != public.MARKER)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Server(ThreadingHTTPServer):
    """Sends `content` with `status`, cut after `sent` bytes where that is not None; counts what it was asked for."""

    daemon_threads = True
    content, status, sent, asked = b"", 200, None, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.sent])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def visa(server) -> Source:
    server.content = tar(VISA)
    return source_of(server.content, "visa", server.url)


def message(error: pytest.ExceptionInfo) -> str:
    """One sentence that ends in a full stop, or in an address or a command to copy."""
    text = str(error.value)
    assert "\n" not in text and (text.endswith(".") or " " not in text[text.rindex(" at ") + 4 :]), text
    return text


# ---- what goes well ----


@pytest.mark.parametrize("name", ["mvtec_ad", "visa", "btad"])
@pytest.mark.parametrize("own", [False, True], ids=["fetched", "own file"])
def test_each_data_set_becomes_a_folder_that_the_reader_knows(tmp_path, server, capfd, name, own):
    files = {"mvtec_ad": MVTEC, "visa": VISA, "btad": BTAD}[name]
    server.content = {"mvtec_ad": lambda f: tar(f, "w:xz"), "visa": tar, "btad": zipped}[name](files)
    source = source_of(server.content, name, "" if own else server.url)
    mine = tmp_path / "sets" / f"{name}.download" / "renamed by my browser" if own else tmp_path / "other"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(server.content)
    root = download(source, tmp_path / "sets" / name, mine if own else None)
    layout, category = {"mvtec_ad": ("mvtec", "bottle"), "visa": ("visa", "candle"), "btad": ("btad", "01")}[name]
    assert list_categories(root) == (category,)
    found = read_category(root, category)
    assert check_category(found) == [] and found.layout == layout and found.has_masks
    expected = {key.removeprefix("BTech_Dataset_transformed/"): value for key, value in files.items() if key[0] != "_"}
    assert tree(root) == expected
    record = read_json(root / public.MARKER)
    assert (record["sha256"], record["licence"]) == (source.sha256, source.licence)
    assert server.asked == (not own) and mine.exists()
    kept = [mine.parent, mine] if own else []  # one's own archive is, what was on its way is not
    assert sorted({*(tmp_path / "sets").rglob("*")} - {root, *root.rglob("*")}) == kept
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
        with pytest.raises(InputError) as error:
            download(source, folder)
        assert "--to" in message(error) and tree(folder) == before
    assert server.asked == 1


def test_an_archive_that_was_whole_is_not_fetched_again(tmp_path, server, visa, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", full)
        with pytest.raises(RunError) as error:
            download(visa, tmp_path / "set")
    assert "No space left on device" in message(error) and "space" in message(error)
    assert not (tmp_path / "set").exists() and tree(tmp_path / "set.download") == {visa.archive: server.content}
    assert tree(download(visa, tmp_path / "set")) == VISA and server.asked == 1


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- what fails ----


@pytest.mark.parametrize("status, sent, word", [(404, None, "404"), (503, None, "503"), (200, 5000, "connection lost")])
def test_a_server_that_fails_is_one_sentence(tmp_path, server, visa, status, sent, word):
    server.status, server.sent = status, sent
    with pytest.raises(RunError) as error:
        download(visa, tmp_path / "set")
    assert all(part in message(error) for part in (word, visa.url, visa.home, "run this again", "--archive"))
    with pytest.raises(RunError, match="127.0.0.1:1.*connection lost"):
        download(replace(visa, url="http://127.0.0.1:1/archive"), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    server.status, server.sent = 200, None
    assert tree(download(visa, tmp_path / "set")) == VISA


def test_a_wrong_hash_is_not_used(tmp_path, server, visa):
    right, server.content = server.content, b"<html>please log in</html>"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(RunError) as error:
        download(visa, tmp_path / "set")
    assert found in message(error) and visa.sha256 in message(error) and list(tmp_path.iterdir()) == []
    mine = tmp_path / "mine.tar"
    mine.write_bytes(server.content)
    with pytest.raises(InputError) as error:
        download(visa, tmp_path / "set", mine)
    assert all(word in message(error) for word in (found, visa.sha256, str(mine), visa.home))
    assert list(tmp_path.iterdir()) == [mine]
    server.content = right
    assert tree(download(visa, tmp_path / "set")) == VISA


LINK = zipfile.ZipInfo("01/link")
LINK.create_system, LINK.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("visa", tar(VISA | {"../out.txt": b"x"}), "outside"),
        ("visa", special("link", tarfile.SYMTYPE, ".."), "outside"),
        ("visa", special("link", tarfile.SYMTYPE, "/etc"), "absolute path"),
        ("visa", special("hard", tarfile.LNKTYPE, "../out.txt"), "outside"),
        ("visa", special("null", tarfile.CHRTYPE), "special file"),
        ("btad", zipped(BTAD | {"../out.txt": b"x"}), "'../out.txt' is a link, or leads out"),
        ("btad", zipped(BTAD | {"..\\out.txt": b"x"}), "leads out"),
        ("btad", zipped(BTAD | {"C:/out.txt": b"x"}), "leads out"),
        ("btad", zipped(BTAD | {"/tmp/out.txt": b"x"}), "leads out"),
        ("btad", zipped(BTAD, LINK), "'01/link' is a link"),
        ("mvtec_ad", tar(MVTEC, "w:xz")[:20_000], "cannot be unpacked"),
        ("visa", tar(VISA)[:20_000], "cannot be unpacked"),
        ("btad", zipped(BTAD)[:-30], "cannot be unpacked"),
        ("btad", zipped(BTAD).replace(picture(2)[100:110], bytes(10)), "cannot be unpacked"),
        ("visa", b"no archive", "cannot be unpacked"),
        ("visa", tar({"notes/read.me": b"x", "more/read.me": b"x"}), "no data set"),
        ("btad", zipped({"deep/er/read.me": b"x"}), "no data set"),
    ],
)
def test_an_archive_that_leads_out_of_its_folder_or_is_damaged_leaves_nothing(tmp_path, name, content, word):
    mine = tmp_path / "mine"
    mine.write_bytes(content)
    with pytest.raises(InputError) as error:
        download(source_of(content, name), tmp_path / "sets" / "new", mine)
    assert word in message(error) and sorted(tmp_path.rglob("*")) == [mine, tmp_path / "sets"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path, server, visa, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(server.content)))
    with pytest.raises(RunError, match="GB are needed, more than the disk has left.*another folder with --to"):
        download(visa, tmp_path / "set")
    huge = zipfile.ZipInfo("01/huge")
    content = bytearray(zipped(BTAD, huge))
    at = content.rindex(b"PK\x01\x02")  # the size that the last member declares
    content[at + 24 : at + 28] = (2**31).to_bytes(4, "little")
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(RunError, match="2.1 GB are needed"):
        download(source_of(bytes(content), "btad"), tmp_path / "set", tmp_path / "mine")
    assert server.asked == 0 and [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(RunError, match="mine/set.download cannot be read or written"):
        download(visa, tmp_path / "mine" / "set")


# ---- the sources ----


def test_every_source_says_where_from_and_on_which_terms():
    assert list(SOURCES) == ["mvtec_ad", "visa", "btad"]
    for name, source in SOURCES.items():
        assert source.name == name and re.fullmatch("[0-9a-f]{64}", source.sha256)
        assert source.home.startswith("https://") and (not source.url or source.url.startswith("https://"))
        text = public.notice(source)
        for part in (source.licence, source.terms, source.citation, source.archive, source.url or source.home):
            assert part in text
    assert "CC BY-NC-SA 4.0" in public.notice(SOURCES["mvtec_ad"]) and "unsure" in SOURCES["btad"].licence


def test_a_source_behind_a_form_is_explained(tmp_path):
    with pytest.raises(InputError, match="mvtec.com/company/.*data download mvtec_ad --archive PATH"):
        download(SOURCES["mvtec_ad"], tmp_path / "set")
    with pytest.raises(InputError, match="gone: no such file; name the mvtec_anomaly_detection.tar.xz"):
        download(SOURCES["mvtec_ad"], tmp_path / "set", tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
