"""Public data sets by name: the archive is fetched by pooch, checked against its SHA-256, and unpacked.

NAME.download/ beside the new folder NAME holds what is on its way. NAME appears in one step, complete, with where it
came from in irf_download.json; the archive that was fetched is then removed.
"""

import errno
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from ..files import InputError, RunError, file_sha256, one_line, printable, write_json
from .layouts import find_categories

MARKER = "irf_download.json"  # in a finished data set: what it is and where it came from


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and on which terms. `url` is empty where only a person can get the archive."""

    name: str  # on the command line, and of its folder
    title: str
    archive: str  # the archive's file name; its suffix says how to unpack it
    n_bytes: int  # of the archive as last heard of: for the notice and the room on the disk, nothing depends on it
    sha256: str  # hex
    url: str
    home: str  # the page where a person finds it
    licence: str
    terms: str  # what the licence allows, in one line
    citation: str


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="mvtec_ad",
            title="MVTec AD",
            archive="mvtec_anomaly_detection.tar.xz",
            n_bytes=5_264_982_680,
            sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            url="",  # handed out behind a form
            home="https://www.mvtec.com/company/research/datasets/mvtec-ad",
            licence="CC BY-NC-SA 4.0",
            terms="not for commercial use; name the authors; pass changed copies on under the same licence",
            citation="Bergmann, Fauser, Sattlegger, Steger: MVTec AD - A Comprehensive Real-World Dataset for "
            "Unsupervised Anomaly Detection, CVPR 2019",
        ),
        Source(
            name="visa",
            title="VisA",
            archive="VisA_20220922.tar",
            n_bytes=1_929_840_640,
            sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            home="https://github.com/amazon-science/spot-diff",
            licence="CC BY 4.0",
            terms="free to use and share, also commercially; name the authors",
            citation="Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-Supervised Pre-training for "
            "Anomaly Detection and Segmentation, ECCV 2022",
        ),
        Source(
            name="btad",
            title="BTAD",
            archive="btad.zip",
            n_bytes=1_229_193_337,
            sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
            home="https://github.com/pankajmishra000/VT-ADL",
            # Unsettled: the README at `home` has named CC BY-SA 4.0, anomalib's documentation names CC BY-NC-SA 4.0.
            licence="CC BY-NC-SA 4.0 or CC BY-SA 4.0 (unsure: sources differ)",
            terms="ask its authors before commercial use; name them; pass changed copies on under the same licence",
            citation="Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL - A Vision Transformer Network for Image "
            "Anomaly Detection and Localization, ISIE 2021",
        ),
    )
}


def notice(source: Source) -> str:
    """What somebody should know before the download: licence, citation, origin and size; several lines."""
    lines = {
        "data set": source.title,
        "licence": f"{source.licence}: {source.terms}",
        "cite": source.citation,
        "archive": f"{source.archive}, about {source.n_bytes / 1e9:.1f} GB, and as much again unpacked",
        "from": source.url or source.home,
    }
    return "\n".join(f"{word + ':':<10}{text}" for word, text in lines.items())


def is_finished(source: Source, target: Path) -> bool:
    """Whether `target` is the data set as :func:`download` left it. InputError if it holds anything else."""
    target, marker = Path(target), Path(target, MARKER)
    if not target.exists() or target.is_dir() and not any(target.iterdir()):
        return False
    if marker.is_file() and source.sha256 in marker.read_text(encoding="utf-8", errors="replace"):
        return True
    raise InputError(
        f"{printable(target)}: exists and is not {source.title} as unpacked here; name another folder with --to."
    )


def check_request(source: Source, archive: Path | None = None) -> None:
    """InputError if there is nothing to unpack: a source behind a form and no `archive`, or no such file."""
    if archive is not None and not Path(archive).is_file():
        raise InputError(f"{printable(archive)}: no such file; name the {source.archive} that you have.")
    if archive is None and not source.url:
        raise InputError(
            f"{source.title} is given out by its owner only; get {source.archive} at {source.home}, then run "
            f"python -m irf_lib data download {source.name} --archive PATH/{source.archive}"
        )


def download(source: Source, target: Path, archive: Path | None = None) -> Path:
    """Fetch the source's archive, or take `archive`, and unpack it as `target`; return the resolved `target`.

    A finished `target` is left alone, and an archive that was whole when its unpacking failed is not fetched again.
    Raises RunError for a network or a disk that failed, InputError for a wrong archive or a `target` in use. Nothing is
    written outside `target` and `target`.download beside it.
    """
    target = Path(target).resolve()
    folder = target.with_name(f"{target.name}.download")
    try:
        if is_finished(source, target):
            return target
        check_request(source, archive)
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, source.n_bytes if archive else 2 * source.n_bytes)  # photographs hardly shrink
        path = _fetch(source, folder) if archive is None else Path(archive)
        if archive is not None and (found := file_sha256(path)) != source.sha256:
            raise InputError(
                f"{printable(path)}: its SHA-256 is {found}, that of {source.archive} {source.sha256}; it is "
                f"incomplete or another file, get it again at {source.home}"
            )
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            root = _unpack(source, path, Path(staging, "new"))
            write_json(root / MARKER, asdict(source))
            if target.is_dir():
                target.rmdir()  # only an empty one is let pass; Windows does not replace it
            root.rename(target)
        if archive is None:
            shutil.rmtree(folder)
    except OSError as error:
        raise RunError(
            f"{printable(error.filename or target)} cannot be read or written ({error.strerror or error}): check free "
            "space and permissions, or name another folder with --to, and run this again."
        ) from error
    finally:
        with suppress(OSError):
            folder.rmdir()  # if nothing is left in it
    return target


def _require_room(folder: Path, n_bytes: int) -> None:
    if n_bytes > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"{n_bytes / 1e9:.1f} GB are needed, more than the disk has left", str(folder))


def _fetch(source: Source, folder: Path) -> Path:
    import pooch  # with requests, half a second that nobody else should wait
    import requests

    pooch.get_logger().setLevel("WARNING")  # it would tell again what the notice told
    try:
        return Path(pooch.retrieve(source.url, source.sha256, source.archive, folder, progressbar=True))
    except (requests.RequestException, ValueError) as error:  # ValueError: pooch's word for a wrong hash
        told = isinstance(error, requests.HTTPError) or not isinstance(error, OSError)
        # The other exceptions of requests nest objects and addresses; their kind is what a person can use.
        reason = one_line(error, 500).rstrip(".") if told else f"connection lost: {type(error).__name__}"
        raise RunError(
            f"{source.url}: {reason}; run this again, or get {source.archive} at {source.home} and name it with "
            "--archive."
        ) from None


def _unpack(source: Source, archive: Path, folder: Path) -> Path:
    """Write the archive's files below `folder`; the data set among them. InputError for an archive that is damaged, has
    a name or a link that leads out of `folder`, or holds no data set that layouts.py can read."""
    folder.mkdir()
    try:
        if source.archive.endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                # What is unpacked of a member ends at the size that it declares.
                _require_room(folder, sum(member.file_size for member in file.infolist()))
                for member in tqdm(_checked(file), unit=" files", desc="unpacking", disable=None):
                    file.extract(member, folder)
        else:
            with tarfile.open(archive, "r|*") as file:  # as a stream: an .xz is not read twice
                members = tqdm(file, unit=" files", desc="unpacking", disable=None)
                file.extractall(folder, members, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(
            f"{printable(archive)}: cannot be unpacked ({one_line(error)}); nothing of it is used, get it again at "
            f"{source.home}"
        ) from None
    root = folder
    while not find_categories(root):
        inner = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
        if len(inner) != 1:
            raise InputError(f"{printable(archive)}: holds no data set of a known layout; get it at {source.home}")
        root = inner[0]
    return root


def _checked(file: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """The members of a zip. BadZipFile for a link, a device, or a name that on some system leads out of its folder."""
    for member in file.infolist():
        name, kind = PureWindowsPath(member.filename), stat.S_IFMT(member.external_attr >> 16)  # 0: no Unix wrote it
        if name.anchor or ".." in name.parts or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise zipfile.BadZipFile(f"{member.filename!r} is a link, or leads out of its folder")
        yield member
