"""public.py against archives that are built here."""

import errno
import hashlib
import io
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from irf_lib.data import public
from irf_lib.data.layouts import list_categories
from irf_lib.data.public import SOURCES, download
from irf_lib.files import RunError, read_json

NAMES = "set/train/good/0.png set/test/good/0.png set/test/cut/0.png set/ground_truth/cut/0.png"
FILES = {name: name.encode() * 100 for name in NAMES.split()}


def archive_of(files: dict[str, bytes], kind: str) -> bytes:
    """A zip file, or a tar file: kind is then tarfile's mode."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") if kind == "zip" else tarfile.open(fileobj=file, mode=kind) as archive:
        for name, content in files.items():
            if kind == "zip":
                archive.writestr(name, content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def source_of(content: bytes, name: str, url: str = "https://here") -> SimpleNamespace:
    """A source as the real one of that name, of other content."""
    return SimpleNamespace(**vars(SOURCES[name]) | {"sha256": hashlib.sha256(content).hexdigest(), "url": url})


ARCHIVES = {
    "mvtec_ad": archive_of(FILES, "w:xz"),
    "visa": archive_of(FILES, "w"),
    "btad": archive_of({f"BTech/{name}": FILES[name] for name in FILES} | {"__MACOSX/._BTech": b"junk"}, "zip"),
}


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != public.MARKER)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def fetch(monkeypatch):
    """Stands in for pooch.retrieve: leaves ``fetch.content`` as the archive, or raises ``fetch.error``."""

    def retrieve(url, known_hash, fname, path, progressbar):
        if fetch.error:
            raise fetch.error
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(fetch.content)
        return str(path / fname)

    fetch = Mock(side_effect=retrieve, content=ARCHIVES["visa"], error=None)
    monkeypatch.setattr(public.pooch, "retrieve", fetch)
    return fetch


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("own", [False, True], ids=["fetched", "own file"])
def test_each_data_set_becomes_a_folder_that_the_reader_knows(tmp_path, fetch, name, own):
    fetch.content, mine = ARCHIVES[name], tmp_path / "renamed by my browser"
    mine.write_bytes(ARCHIVES[name])
    source = source_of(ARCHIVES[name], name, "" if own else "https://here")
    root = download(source, tmp_path / "sets" / name, mine if own else None)
    assert tree(root) == FILES and list_categories(root) == ("set",)
    record = read_json(root / public.MARKER)
    assert record["sha256"] == source.sha256 and record["licence"] == source.licence
    assert fetch.called != own and mine.exists()
    assert list((tmp_path / "sets").iterdir()) == [root], "what was on its way is removed"


def test_a_finished_data_set_is_left_alone_and_nobody_elses_folder_is_used(tmp_path, fetch, refused):
    visa = source_of(ARCHIVES["visa"], "visa")
    (tmp_path / "set").mkdir()  # an empty folder is as good as none
    root = download(visa, tmp_path / "set")
    assert public.is_finished(visa, root) and download(visa, root) == root
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"dear to me")
    for source, folder in ((visa, tmp_path / "mine"), (SimpleNamespace(**vars(visa) | {"sha256": "0" * 64}), root)):
        before = tree(folder)
        refused("name another folder with --to", download, source, folder)
        assert tree(folder) == before
    assert fetch.call_count == 1


def test_what_fails_is_one_sentence_and_leaves_no_data_set(tmp_path, fetch, monkeypatch, refused):
    visa, target = source_of(ARCHIVES["visa"], "visa"), tmp_path / "set"
    for error in (OSError("404 Not Found"), ValueError("SHA256 does not match")):
        fetch.error, words = error, f"{error} {visa.title} {visa.archive} {visa.home} run this again --archive"
        refused(words, download, visa, target, kind=RunError)
    (tmp_path / "mine.tar").write_bytes(b"<html>please log in</html>")
    refused(f"mine.tar SHA-256 {visa.sha256} {visa.home}", download, visa, target, tmp_path / "mine.tar")
    fetch.error = None
    monkeypatch.setattr(tarfile.TarFile, "makefile", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    refused("No space left on device; check free space", download, visa, target, kind=RunError)
    assert sorted(tree(tmp_path)) == ["mine.tar", f"set.download/{visa.archive}"], "the archive is not fetched again"


@pytest.mark.parametrize("name", ["../../out.txt", "/{}/out.txt"])
def test_a_hostile_name_in_an_archive_leads_nowhere(tmp_path, name):
    mine, root = tmp_path / "mine", tmp_path / "sets" / "new"
    for kind, source, target in (("zip", "btad", root), ("w", "visa", root / "other")):
        mine.write_bytes(archive_of(FILES | {name.format(tmp_path): b"x"}, kind))
        with suppress(RunError):  # tarfile refuses, or writes the file into the folder; zipfile leaves it out
            download(source_of(mine.read_bytes(), source), target, mine)
    assert (root / public.MARKER).is_file() and {*tmp_path.iterdir()} == {mine, root.parent}
    assert list(root.parent.iterdir()) == [root]


def test_every_source_says_where_from_and_on_which_terms():
    for source in SOURCES.values():
        text = public.notice(source)
        assert all(part in text for part in (source.licence, source.citation, source.url or source.home))
