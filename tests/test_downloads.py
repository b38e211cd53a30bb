"""downloads.py against a server of this machine that misbehaves on request, and archives that are built here."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

from irf_lib import datasets, downloads
from irf_lib.__main__ import main
from irf_lib.datasets import DataError
from irf_lib.downloads import DownloadError, Source, download

ROOT = Path(__file__).resolve().parents[1]


# ---- archives ----


def picture(seed: int = 0, side: int = 48) -> bytes:
    """A PNG of noise, about 7 kB: an archive of some of them is several blocks of a download long."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mask() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.eye(48, dtype=np.uint8) * 255).save(file, "PNG")
    return file.getvalue()


MVTEC = {
    **{f"bottle/train/good/{n:03d}.png": picture(n) for n in range(20)},
    "bottle/test/good/000.png": picture(30),
    "bottle/test/broken/000.png": picture(31),
    "bottle/ground_truth/broken/000_mask.png": mask(),
    "license.txt": b"licence",
}
VISA = {
    "candle/Data/Images/Normal/0000.JPG": picture(1),
    "candle/Data/Images/Normal/0001.JPG": picture(2),
    "candle/Data/Images/Anomaly/000.JPG": picture(3),
    "candle/Data/Masks/Anomaly/000.png": mask(),
    "split_csv/1cls.csv": b"object,split,label,image,mask\n"
    b"candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"
    b"candle,test,normal,candle/Data/Images/Normal/0001.JPG,\n"
    b"candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n",
}
BTAD = {
    "BTech_Dataset_transformed/01/train/ok/0000.png": picture(1),
    "BTech_Dataset_transformed/01/test/ok/0000.png": picture(2),
    "BTech_Dataset_transformed/01/test/ko/0000.png": picture(3),
    "BTech_Dataset_transformed/01/ground_truth/ko/0000.png": mask(),
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


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


KINDS = {
    "mvtec_ad": (lambda: tar(MVTEC, "w:xz"), "mvtec_anomaly_detection.tar.xz"),
    "visa": (lambda: tar(VISA), "VisA_20220922.tar"),
    "btad": (lambda: zipped(BTAD), "btad.zip"),
}


def source_of(content: bytes, name: str, url: str = "") -> Source:
    """A source as the real one of that name, of other content."""
    real = downloads.SOURCES[name]
    return replace(real, n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), url=url)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != downloads.MARKER)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---- the server ----


class Server(ThreadingHTTPServer):
    """One file, `content`, and the ways to spoil its delivery; `asked` and `answered` tell what went on."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.etag, self.modified = '"one"', ""
        self.drops: list[int] = []  # of each request in turn, the bytes after which its connection ends
        self.statuses: list[int] = []  # of each request in turn, a refusal
        self.ranges = True  # whether it knows them
        self.lengths: list[bool] = []  # of each request in turn, whether it tells a length
        self.stall = threading.Event()  # until set, a dropped connection is held open instead
        self.stall.set()
        self.asked: list[tuple[str | None, str | None]] = []  # Range, If-Range
        self.answered: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append((self.headers["Range"], self.headers["If-Range"]))
        start, length = 0, len(server.content)
        wanted = self.headers["If-Range"]
        if self.headers["Range"] and server.ranges and wanted in (None, server.etag, server.modified):
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        status = server.statuses.pop(0) if server.statuses else 206 if start else 200
        if start >= length:
            status = 416
        server.answered.append(status)
        self.send_response(status)
        body = server.content[start:] if status in (200, 206) else b"no"
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{length - 1}/{length}")
        elif status == 416:
            self.send_header("Content-Range", f"bytes */{length}")
        for name, value in (("ETag", server.etag), ("Last-Modified", server.modified)):
            if value:
                self.send_header(name, value)
        if server.lengths.pop(0) if server.lengths else True:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = server.drops.pop(0) if server.drops else len(body)
        self.wfile.write(body[:sent])
        self.wfile.flush()
        if sent < len(body):
            server.stall.wait(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "_PAUSES", (0, 0, 0))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stall.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def mvtec(server) -> Source:
    """An archive of 140 kB, longer than two blocks of a transfer."""
    server.content = tar(MVTEC)
    return replace(source_of(server.content, "mvtec_ad", server.url), archive="mvtec.tar")


def message(error: pytest.ExceptionInfo) -> str:
    """One sentence that ends in a full stop, or in an address or a command to copy."""
    text = str(error.value)
    assert "\n" not in text and (text.endswith(".") or " " not in text[text.rindex(" at ") + 4 :]), text
    return text


# ---- what goes well ----


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("own", [False, True], ids=["fetched", "own file"])
def test_each_data_set_becomes_a_folder_that_the_reader_knows(tmp_path, server, name, own):
    build, archive = KINDS[name]
    server.content = build()
    source = source_of(server.content, name, "" if own else server.url)
    assert source.archive == archive
    mine = tmp_path / "renamed by my browser"
    mine.write_bytes(server.content)
    root = download(source, tmp_path / "sets" / name, mine if own else None)
    assert root == tmp_path / "sets" / name
    layout, category = {"mvtec_ad": ("mvtec", "bottle"), "visa": ("visa", "candle"), "btad": ("btad", "01")}[name]
    assert datasets.list_categories(root) == (category,)
    found = datasets.read_category(root, category)
    datasets.check_category(found)
    assert found.layout == layout and found.has_masks and {image.kind for image in found.test} >= {"good"}
    prefix = "BTech_Dataset_transformed/"
    files = {"mvtec_ad": MVTEC, "visa": VISA, "btad": BTAD}[name]
    assert tree(root) == {key.removeprefix(prefix): value for key, value in files.items() if key[0] != "_"}
    record = json.loads((root / downloads.MARKER).read_text())
    assert (record["sha256"], record["licence"]) == (source.sha256, source.licence) and record["unpacked"]
    assert len(server.asked) == (0 if own else 1)
    kept = tmp_path / "sets" / f"{name}.download"
    assert not kept.exists() if own else [path.name for path in kept.iterdir()] == [archive]
    assert os.access(next(root.rglob("*.png")), os.W_OK), "the archive's modes are not ours"


def test_a_finished_data_set_is_not_touched_and_a_kept_archive_not_fetched_again(tmp_path, server, mvtec):
    root = download(mvtec, tmp_path / "set")
    assert downloads.is_finished(mvtec, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    download(mvtec, root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    shutil.rmtree(root)
    assert not downloads.is_finished(mvtec, root)
    download(mvtec, root)
    assert tree(root) == MVTEC and len(server.asked) == 1
    shutil.rmtree(root)
    (tmp_path / "set.download" / mvtec.archive).write_bytes(b"damaged meanwhile")
    download(mvtec, root)
    assert tree(root) == MVTEC and len(server.asked) == 2


def test_an_empty_folder_is_used_and_any_other_is_left_alone(tmp_path, server, mvtec):
    (tmp_path / "set").mkdir()
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"dear to me")
    other = replace(mvtec, sha256="0" * 64)
    for source, folder in ((mvtec, tmp_path / "mine"), (other, tmp_path / "set")):
        before = tree(folder)
        with pytest.raises(DataError) as error:
            download(source, folder)
        assert "--to" in message(error) and tree(folder) == before
    assert len(server.asked) == 1


def test_a_data_set_that_lost_a_file_is_not_called_finished(tmp_path, mvtec):
    root = download(mvtec, tmp_path / "set")
    (root / "notes.txt").write_text("what somebody adds does no harm")
    assert downloads.is_finished(mvtec, root)
    for spoil in (lambda path: path.write_bytes(b""), lambda path: path.unlink()):
        spoil(root / "bottle/train/good/003.png")
        (root / "notes.txt").unlink(missing_ok=True)
        with pytest.raises(DataError, match="lost some of its 24 files; delete it"):
            downloads.is_finished(mvtec, root)


# ---- the network ----


def test_a_dropped_connection_goes_on_where_it_was(tmp_path, server, mvtec):
    server.drops = [100_000]
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked == [(None, None), ("bytes=100000-", '"one"')] and server.answered == [200, 206]


def test_the_rest_is_asked_for_after_a_restart_too(tmp_path, server, mvtec):
    server.drops = [70_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError) as error:
        download(mvtec, tmp_path / "set")
    text = message(error)
    assert all(word in text for word in (mvtec.url, "0.1 MB", "run this again", mvtec.home, "--archive"))
    assert len(server.asked) == 1 + 3, "three tries brought nothing"
    assert not (tmp_path / "set").exists()
    server.drops, server.asked = [], []
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked == [("bytes=70000-", '"one"')]


def test_tries_that_bring_bytes_are_not_counted(tmp_path, server, mvtec):
    server.drops = [20_000] * 6
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert [ask for ask, _ in server.asked] == [None] + [f"bytes={n * 20_000}-" for n in range(1, 7)]


def test_a_server_without_ranges_begins_again_and_not_for_ever(tmp_path, server, mvtec):
    server.ranges, server.drops = False, [100_000]
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC and server.answered == [200, 200]
    server.drops = [100_000] * 9
    with pytest.raises(DownloadError, match="no more came"):
        download(mvtec, tmp_path / "other")
    assert len(server.drops) == 9 - 4


@pytest.mark.parametrize(
    ("etag", "modified", "sent"),
    [
        ('"one"', "Mon, 01 Jan 2024 00:00:00 GMT", '"one"'),
        ('W/"weak"', "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("", "", None),
    ],
)
def test_the_validator_is_a_strong_tag_or_a_date(tmp_path, server, mvtec, etag, modified, sent):
    server.etag, server.modified, server.drops = etag, modified, [80_000]
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked[1] == ("bytes=80000-", sent) and server.answered == [200, 206]


@pytest.mark.parametrize("tagged", [True, False], ids=["tagged", "by its length"])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(tmp_path, server, mvtec, tagged):
    server.etag = '"one"' if tagged else ""
    server.content, server.drops = os.urandom(len(server.content) + 7), [100_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        download(mvtec, tmp_path / "set")
    server.content, server.etag = tar(MVTEC), '"two"' if tagged else ""
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.answered[4:] == ([200] if tagged else [206, 200])


@pytest.mark.parametrize(
    "head", [None, "{", "[]", '{"url": "http://elsewhere/", "validator": "\\"one\\"", "total": 9}']
)
def test_bytes_that_nothing_vouches_for_are_not_used(tmp_path, server, mvtec, head):
    folder = tmp_path / "set.download"
    folder.mkdir()
    (folder / f"{mvtec.archive}.part").write_bytes(b"of unknown origin")
    if head:
        (folder / f"{mvtec.archive}.part.json").write_text(head)
    server.statuses = [206]  # a part that nobody asked for is not put behind them either
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked == [(None, None)] * 2


def test_more_bytes_than_the_server_has_are_given_up(tmp_path, server, mvtec):
    whole, server.drops = server.content, [100_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        download(mvtec, tmp_path / "set")
    server.content = whole[:50_000]
    with pytest.raises(DownloadError, match="SHA-256"):
        download(mvtec, tmp_path / "set")
    assert server.answered[4:] == [416, 200]


def test_no_length_told(tmp_path, server, mvtec):
    server.lengths = [False]
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC


def test_a_rest_without_a_length_that_ends_early(tmp_path, server, mvtec):
    server.lengths, server.drops = [True, False], [70_000, 10_000]
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert [ask for ask, _ in server.asked] == [None, "bytes=70000-", "bytes=80000-"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(tmp_path, server, mvtec, status):
    server.statuses = [status]
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.answered == [status, 200]
    server.statuses = [status] * 9
    with pytest.raises(DownloadError, match=str(status)):
        download(mvtec, tmp_path / "other")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_server_that_has_nothing_is_asked_once(tmp_path, server, mvtec, status):
    server.statuses = [status]
    with pytest.raises(DownloadError) as error:
        download(mvtec, tmp_path / "set")
    assert all(word in message(error) for word in (str(status), mvtec.home, "--archive"))
    assert server.answered == [status] and list(tmp_path.iterdir()) == []


def test_no_server_at_all(tmp_path, server, mvtec):
    with pytest.raises(DownloadError) as error:
        download(replace(mvtec, url="http://127.0.0.1:1/archive"), tmp_path / "set")
    assert "127.0.0.1:1" in message(error) and mvtec.home in message(error)


# ---- the hash ----


def test_a_wrong_hash_is_put_aside_and_fetched_anew(tmp_path, server, mvtec):
    right, server.content = server.content, b"<html>please log in</html>"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(DownloadError) as error:
        download(mvtec, tmp_path / "set")
    assert found in message(error) and mvtec.sha256 in message(error)
    folder = tmp_path / "set.download"
    assert [path.name for path in folder.iterdir()] == [f"{mvtec.archive}.wrong"] and not (tmp_path / "set").exists()
    server.content = right
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked == [(None, None)] * 2


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:99] + b"!" + data[100:]])
def test_an_own_file_with_a_wrong_hash_is_refused_and_kept(tmp_path, mvtec, spoil):
    mine = tmp_path / "mine.tar"
    mine.write_bytes(spoil(tar(MVTEC)))
    with pytest.raises(DataError) as error:
        download(mvtec, tmp_path / "set", mine)
    digests = hashlib.sha256(mine.read_bytes()).hexdigest(), mvtec.sha256
    assert all(word in message(error) for word in (*digests, str(mine), mvtec.home))
    assert list(tmp_path.iterdir()) == [mine]


# ---- archives that want out ----

LINK = zipfile.ZipInfo("01/link")
LINK.create_system, LINK.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("visa", tar(VISA | {"../out.txt": b"x"}), "'../out.txt' leads out"),
        ("visa", tar(VISA | {"candle/../../out.txt": b"x"}), "leads out"),
        ("visa", tar(VISA | {"C:/out.txt": b"x"}), "leads out"),
        ("visa", tar(VISA | {"..\\out.txt": b"x"}), "leads out"),
        ("visa", tar(VISA, "w", special("link", tarfile.SYMTYPE, "..")), "'link' is a link"),
        ("visa", tar(VISA, "w", special("link", tarfile.SYMTYPE, "split_csv")), "'link' is a link"),
        ("visa", tar(VISA, "w", special("hard", tarfile.LNKTYPE, "../out.txt")), "'hard' is a link"),
        ("visa", tar(VISA, "w", special("null", tarfile.CHRTYPE)), "'null' is a link or a device"),
        ("visa", tar(VISA, "w", special("pipe", tarfile.FIFOTYPE)), "'pipe' is a link or a device"),
        ("visa", tar(VISA, "w", special("split_csv/1cls.csv", tarfile.REGTYPE)), "twice"),
        ("visa", tar(VISA | {"candle/Data/Masks/Anomaly/000.png/x": b"x"}), "twice"),
        ("btad", zipped(BTAD | {"../out.txt": b"x"}), "leads out"),
        ("btad", zipped(BTAD | {"01/../../out.txt": b"x"}), "leads out"),
        ("btad", zipped(BTAD, LINK), "'01/link' is a link"),
    ],
)
def test_an_archive_that_leads_out_of_its_folder_is_not_used(tmp_path, name, content, word):
    assert word in refused(tmp_path, name, content)


@pytest.mark.parametrize("name", ["visa", "btad"])
def test_a_name_from_the_root_of_the_disk_is_not_used(tmp_path, name):
    place = {str(tmp_path / "out.txt"): b"x"}
    assert "leads out" in refused(tmp_path, name, tar(VISA | place) if name == "visa" else zipped(BTAD | place))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("mvtec_ad", tar(MVTEC, "w:xz")[:90_000], "cannot be unpacked"),
        ("visa", tar(VISA)[:20_000], "cannot be unpacked"),
        ("btad", zipped(BTAD)[:-30], "cannot be unpacked"),
        ("btad", zipped(BTAD).replace(picture(2)[100:110], bytes(10)), "cannot be unpacked"),
        ("visa", b"no archive", "cannot be unpacked"),
        ("visa", tar({"notes/read.me": b"x", "more/read.me": b"x"}), "no data set"),
        ("btad", zipped({"deep/er/read.me": b"x"}), "no data set"),
    ],
)
def test_an_archive_that_cannot_be_used_leaves_nothing(tmp_path, name, content, word):
    assert word in refused(tmp_path, name, content)


def refused(tmp_path: Path, name: str, content: bytes) -> str:
    """The message when an archive of this content, whose hash is right, is unpacked; nothing is left behind."""
    mine = tmp_path / "mine"
    mine.write_bytes(content)
    with pytest.raises(DownloadError) as error:
        download(source_of(content, name), tmp_path / "sets" / "new", mine)
    assert sorted(tmp_path.rglob("*")) == [mine, tmp_path / "sets"]
    return message(error)


# ---- a full disk ----


def test_too_little_room_is_said_before_anything_is_written(tmp_path, server, mvtec, monkeypatch):
    size = len(server.content)
    room = [2 * size - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - room[0], room[0]))
    with pytest.raises(DownloadError) as error:
        download(mvtec, tmp_path / "set")
    assert "needs 0.3 MB and the disk has 0.3 MB left; make room" in message(error)
    assert not list(tmp_path.rglob("*.part"))
    for name, content in (("visa", tar(VISA)), ("btad", zipped(BTAD))):
        room[0] = 20_000  # less than the archive
        (tmp_path / "mine").write_bytes(content)
        with pytest.raises(DownloadError, match="make room"):
            download(source_of(content, name), tmp_path / name, tmp_path / "mine")
        assert not (tmp_path / name).exists()
    room[0] = 2 * size
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC


class Full:
    """A file on a disk that takes `room` more bytes."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data) -> int:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)
        self.room -= len(data)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@pytest.mark.parametrize("suffix", [".part", "003.png", ".json"], ids=["transfer", "unpacking", "record"])
def test_a_disk_that_fills_up_is_one_sentence_and_nothing_is_lost(tmp_path, server, mvtec, monkeypatch, suffix):
    def full(path, *arguments, **options):
        file = open(path, *arguments, **options)  # noqa: SIM115
        return Full(file, 70_000 if suffix == ".part" else 10) if str(path).endswith(suffix) else file

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "open", full, raising=False)
        if suffix == ".json":
            patch.setattr(downloads, "write_json", no_room)
        with pytest.raises(DownloadError) as error:
            download(mvtec, tmp_path / "set")
    assert "the disk is full; make room and run this again" in message(error)
    assert not (tmp_path / "set").exists() and not (tmp_path / "set.download" / "unpacking").exists()
    server.asked.clear()
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    again = {".part": [("bytes=65536-", '"one"')], "003.png": [], ".json": [(None, None)]}
    assert server.asked == again[suffix]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, mvtec):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError) as error:
        download(mvtec, tmp_path / "file" / "set")
    assert str(tmp_path / "file") in message(error)


def test_a_place_that_cannot_be_read_is_one_sentence(tmp_path, mvtec, monkeypatch):
    def iterdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(DownloadError) as error:
        downloads.is_finished(mvtec, tmp_path)
    assert str(tmp_path) in message(error)


# ---- killed ----

CHILD = """
import sys, time
from irf_lib import downloads
source = downloads.Source(**{source!r})
{before}
downloads.download(source, {target!r})
"""


def killed(source: Source, target: Path, before: str, until) -> None:
    """Start a download in a process of its own, and SIGKILL it once `until` holds."""
    code = CHILD.format(source=vars(source), target=str(target), before=before)
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 120
        while not until():
            assert child.poll() is None and time.monotonic() < deadline, "it should wait to be killed"
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


def test_kill_9_in_mid_download(tmp_path, server, mvtec):
    server.drops = [100_000]
    server.stall.clear()  # the rest does not come
    part = tmp_path / "set.download" / f"{mvtec.archive}.part"
    killed(mvtec, tmp_path / "set", "", lambda: part.exists() and part.stat().st_size >= 65_536)
    arrived = part.stat().st_size
    assert part.read_bytes() == server.content[:arrived] and not (tmp_path / "set").exists()
    server.stall.set()
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked == [(None, None), (f"bytes={arrived}-", '"one"')]


UNPACKING = """
import shutil
copy, copied = shutil.copyfileobj, []
def copyfileobj(source, file, length):
    if len(copied) == 5:
        file.write(source.read(100))
        file.flush()
        time.sleep(600)
    copied.append(copy(source, file, length))
shutil.copyfileobj = copyfileobj
"""


def test_kill_9_while_unpacking(tmp_path, server, mvtec):
    half = tmp_path / "set.download" / "unpacking" / "bottle/train/good/005.png"
    killed(mvtec, tmp_path / "set", UNPACKING, lambda: half.exists() and half.stat().st_size == 100)
    assert not (tmp_path / "set").exists() and not downloads.is_finished(mvtec, tmp_path / "set")
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked == [(None, None)], "the archive was whole"
    assert [path.name for path in (tmp_path / "set.download").iterdir()] == [mvtec.archive]


HASHING = """
import pooch
pooch.core.hash_matches = lambda *_, **__: time.sleep(600)
"""


def test_kill_9_while_the_hash_is_read(tmp_path, server, mvtec):
    folder = tmp_path / "set.download"

    def hashing() -> bool:
        with suppress(FileNotFoundError):  # pooch's file is replaced just then
            return any(path.stat().st_size == len(server.content) for path in folder.glob("tmp*"))
        return False

    killed(mvtec, tmp_path / "set", HASHING, hashing)
    (folder / f".{mvtec.archive}.part-abcd1234.json").write_text("{")  # as storage.py leaves it when killed
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert server.asked == [(None, None)], "every byte was here"
    assert [path.name for path in folder.iterdir()] == [mvtec.archive]


def test_without_hard_links_it_works_as_well(tmp_path, server, mvtec, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    right, server.content = server.content, b"<html>please log in</html>"
    with pytest.raises(DownloadError) as error:
        download(mvtec, tmp_path / "set")
    assert hashlib.sha256(server.content).hexdigest() in message(error) and mvtec.sha256 in message(error)
    assert list(tmp_path.iterdir()) == []
    server.content = right
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC
    assert [path.name for path in (tmp_path / "set.download").iterdir()] == [mvtec.archive]


def test_two_at_once_do_not_write_into_one_file(tmp_path, server, mvtec):
    folder = tmp_path / "set.download"
    folder.mkdir()
    with filelock.FileLock(folder / ".lock"):
        with pytest.raises(DownloadError) as error:
            download(mvtec, tmp_path / "set")
        assert "another process" in message(error) and server.asked == []
    assert tree(download(mvtec, tmp_path / "set")) == MVTEC


# ---- the sources and the command ----


def test_every_source_says_where_from_and_on_which_terms():
    assert list(downloads.SOURCES) == ["mvtec_ad", "visa", "btad"]
    for name, source in downloads.SOURCES.items():
        assert source.name == name and re.fullmatch("[0-9a-f]{64}", source.sha256)
        assert source.home.startswith("https://") and (not source.url or source.url.startswith("https://"))
        text = downloads.notice(source)
        for part in (source.licence, source.terms, source.citation, source.archive, source.url or source.home):
            assert part in text
    assert not downloads.SOURCES["mvtec_ad"].url, "it is behind a form"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def command(server, monkeypatch, tmp_path, capsys):
    """Runs `data download NAME --to .../new ...` and returns its status, output and error output."""
    server.content = tar(VISA)
    monkeypatch.setitem(downloads.SOURCES, "visa", source_of(server.content, "visa", server.url))
    monkeypatch.setitem(downloads.SOURCES, "mvtec_ad", source_of(tar(MVTEC, "w:xz"), "mvtec_ad"))

    def run(name: str, *options: str, answer: str | None = None):
        monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Terminal(answer))
        status = main(["data", "download", name, "--to", str(tmp_path / "new"), *options])
        return status, *capsys.readouterr()

    return run


def test_the_command_shows_the_licence_first_and_ends_with_what_to_do(tmp_path, server, command, monkeypatch, capsys):
    started = []
    real = downloads.download
    monkeypatch.setattr(downloads, "download", lambda *one: started.append(capsys.readouterr().out) or real(*one))
    status, out, error = command("visa", "--yes")
    assert status == 0 and "error" not in error
    for word in ("CC BY 4.0", "Zou", server.url, "VisA_20220922.tar", "0.0 MB"):
        assert word in started[0]
    assert main(re.search(r"irf_lib (data check .*)", out)[1].split()) == 0
    assert re.search(r"irf_lib run --preset reference --data \S+/new --out results/visa", out)
    capsys.readouterr()
    status, out, _ = command("visa")
    assert status == 0 and "is there already" in out and "data check" in out and len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "status"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("", 1), ("yesterday\n", 1)]
)
def test_the_question(tmp_path, server, command, answer, status):
    found, out, _ = command("visa", answer=answer)
    assert found == status and len(server.asked) == (status == 0) and (tmp_path / "new").exists() == (status == 0)
    assert ("nothing was done" in out) == (status == 1)


def test_nobody_to_ask(tmp_path, server, command):
    status, out, error = command("visa")
    assert (status, server.asked) == (2, []) and "CC BY 4.0" in out
    assert error.startswith("error: ") and "--yes" in error


def test_a_source_behind_a_form_is_explained_and_its_archive_taken(tmp_path, server, command):
    status, out, error = command("mvtec_ad", "--yes")
    assert status == 2 and "CC BY-NC-SA 4.0: not for commercial use" in out
    for word in ("mvtec.com/company/research/datasets/mvtec-ad", "data download mvtec_ad --archive"):
        assert word in error
    status, _, error = command("mvtec_ad", "--yes", "--archive", str(tmp_path / "nothing"))
    assert status == 2 and "no such file" in error and "Traceback" not in error
    mine = tmp_path / "mine"
    mine.write_bytes(tar(MVTEC, "w:xz"))
    assert command("mvtec_ad", "--yes", "--archive", str(mine))[0] == 0
    assert tree(tmp_path / "new") == MVTEC and server.asked == []


def test_exit_statuses_of_failures(tmp_path, server, command, capsys):
    mine = tmp_path / "mine"
    mine.write_bytes(b"something else")
    status, _, error = command("visa", "--yes", "--archive", str(mine))
    assert status == 2 and error.startswith("error: ") and "SHA-256" in error
    server.statuses = [404]
    status, _, error = command("visa", "--yes")
    assert status == 1 and error.startswith("error: ") and "404" in error
    server.content = b"no archive"
    assert command("visa", "--yes")[0] == 1
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_bytes(b"mine")
    assert command("visa", "--yes")[0] == 2
    with pytest.raises(SystemExit) as stopped:
        main(["data", "download", "imagenet"])
    assert stopped.value.code == 2 and "mvtec_ad" in capsys.readouterr().err


def test_a_data_set_of_the_default_place_is_never_committed():
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    for name in downloads.SOURCES:
        for place in (f"data/{name}/a/train/good/0.png", f"data/{name}.download/x.zip.part"):
            assert subprocess.run(["git", "check-ignore", "-q", place], cwd=ROOT).returncode == 0, place
