"""public.py against a server and archives that are built here."""

import errno
import hashlib
import io
import tarfile
import threading
import zipfile
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest

from irf_lib.data import public
from irf_lib.data.layouts import list_categories
from irf_lib.data.public import SOURCES, Source, download
from irf_lib.files import RunError, read_json

NAMES = "set/train/good/0.png set/test/good/0.png set/test/cut/0.png set/ground_truth/cut/0.png"
FILES = {name: name.encode() * 100 for name in NAMES.split()}


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
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
    return replace(SOURCES[name], sha256=hashlib.sha256(content).hexdigest(), url=url)


ARCHIVES = {
    "mvtec_ad": tar(FILES, "w:xz"),
    "visa": tar(FILES),
    "btad": zipped({f"BTech/{name}": FILES[name] for name in FILES} | {"__MACOSX/._BTech": b"junk"}),
}


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
        server.content, server.status, server.sent, server.asked = tar(FILES), 200, None, 0
        server.url = f"http://127.0.0.1:{server.server_port}/archive"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def visa(server) -> Source:
    return source_of(server.content, "visa", server.url)


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("own", [False, True], ids=["fetched", "own file"])
def test_each_data_set_becomes_a_folder_that_the_reader_knows(tmp_path, server, name, own):
    server.content, mine = ARCHIVES[name], tmp_path / "renamed by my browser"
    mine.write_bytes(ARCHIVES[name])
    source = source_of(ARCHIVES[name], name, "" if own else server.url)
    root = download(source, tmp_path / "sets" / name, mine if own else None)
    assert tree(root) == FILES and list_categories(root) == ("set",)
    record = read_json(root / public.MARKER)
    assert record["sha256"] == source.sha256 and record["licence"] == source.licence
    assert server.asked == (not own) and mine.exists()
    assert list((tmp_path / "sets").iterdir()) == [root], "what was on its way is removed"


def test_a_finished_data_set_is_left_alone_and_nobody_elses_folder_is_used(tmp_path, server, visa, refused):
    (tmp_path / "set").mkdir()  # an empty folder is as good as none
    root = download(visa, tmp_path / "set")
    assert public.is_finished(visa, root) and download(visa, root) == root
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"dear to me")
    for source, folder in ((visa, tmp_path / "mine"), (replace(visa, sha256="0" * 64), root)):
        before = tree(folder)
        refused("name another folder with --to", download, source, folder)
        assert tree(folder) == before
    assert server.asked == 1


def test_an_archive_that_was_whole_is_not_fetched_again(tmp_path, server, visa, monkeypatch, refused):
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        refused("No space left on device; check free space", download, visa, tmp_path / "set", kind=RunError)
    assert tree(tmp_path) == {f"set.download/{visa.archive}": server.content}
    assert tree(download(visa, tmp_path / "set")) == FILES and server.asked == 1


def test_a_server_that_fails_or_sends_something_else_is_one_sentence(tmp_path, server, visa, refused):
    right, page = server.content, b"<html>please log in</html>"
    found = hashlib.sha256(page).hexdigest()
    for status, sent, content, words in ((404, None, right, "404"), (200, 500, right, "broken"),
                                         (200, None, page, f"{found} {visa.sha256}")):  # fmt: skip
        server.status, server.sent, server.content = status, sent, content
        words += f" {visa.title} {visa.archive} {visa.home} run this again --archive"
        refused(words, download, visa, tmp_path / "set", kind=RunError)
        assert not tree(tmp_path)
    (tmp_path / "mine.tar").write_bytes(page)
    refused(f"mine.tar {found} {visa.sha256} {visa.home}", download, visa, tmp_path / "set", tmp_path / "mine.tar")
    server.content = right
    assert tree(download(visa, tmp_path / "set")) == FILES


@pytest.mark.parametrize("name", ["../../out.txt", "/{}/out.txt"])
def test_a_hostile_name_in_an_archive_leads_nowhere(tmp_path, name):
    zip_, tar_, root = tmp_path / "zip", tmp_path / "tar", tmp_path / "sets" / "new"
    zip_.write_bytes(zipped(FILES | {name.format(tmp_path): b"x"}))
    tar_.write_bytes(tar(FILES | {name.format(tmp_path): b"x"}))
    download(source_of(zip_.read_bytes(), "btad"), root, zip_)
    with suppress(RunError):  # tarfile refuses, or writes the file into the folder
        download(source_of(tar_.read_bytes(), "visa"), root / "other", tar_)
    assert {*tmp_path.rglob("*")} - {*root.rglob("*")} == {zip_, tar_, root.parent, root}


def test_every_source_says_where_from_and_on_which_terms(tmp_path, refused):
    for source in SOURCES.values():
        text = public.notice(source)
        assert all(part in text for part in (source.licence, source.citation, source.url or source.home))
    source = SOURCES["mvtec_ad"]
    refused(f"https://www.mvtec.com/company/ --archive PATH/{source.archive}", download, source, tmp_path / "set")
