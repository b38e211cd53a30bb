"""Public data sets by name: the archive is fetched by pooch into NAME.download, checked against its SHA-256, and
unpacked; the folder NAME appears in one step, complete."""

import shutil
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pooch
import yaml

from ..files import InputError, RunError, file_sha256, one_line, printable, write_json
from .layouts import find_categories

MARKER = "irf_download.json"  # in a finished data set: what it is and where it came from
# By the name on the command line, and of the folder; sources.yaml says what each field is.
_TABLE = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
SOURCES = {name: SimpleNamespace(**entry) for name, entry in _TABLE.items()}


def notice(source: SimpleNamespace) -> str:
    """What somebody should know before the download: licence, citation, origin and size; several lines."""
    size = f"about {source.n_bytes / 1e9:.1f} GB, and as much again unpacked"
    terms = f"data set: {source.title}\nlicence:  {source.licence}\ncite:     {source.citation}\n"
    return f"{terms}archive:  {source.archive}, {size}\nfrom:     {source.url or source.home}"


def is_finished(source: SimpleNamespace, target: Path) -> bool:
    """Whether `target` is the data set as :func:`download` left it. InputError if it holds anything else."""
    marker = Path(target, MARKER)
    if not target.exists() or target.is_dir() and not any(target.iterdir()):
        return False
    if marker.is_file() and source.sha256 in marker.read_text(encoding="utf-8", errors="replace"):
        return True
    raise InputError(f"{printable(target)}: exists and is not {source.title}; name another folder with --to.")


def download(source: SimpleNamespace, target: Path, archive: Path | None = None) -> Path:
    """Fetch the source's archive, or take `archive`, and unpack it as `target`; return the resolved `target`.

    A finished `target` is left alone, and a whole archive whose unpacking failed is not fetched again. RunError for a
    network or a disk that failed, InputError for a wrong or missing archive or a `target` in use."""
    target = Path(target).resolve()
    folder = target.with_name(f"{target.name}.download")
    if is_finished(source, target):
        return target
    if not (archive or source.url):
        where = f"get {source.archive} at {source.home}, then run this again with --archive PATH/{source.archive}"
        raise InputError(f"{source.title} is given out by its owner only; {where}")
    if archive and (found := file_sha256(archive)) != source.sha256:
        wrong = f"its SHA-256 is {found}, that of {source.archive} {source.sha256}"
        raise InputError(f"{printable(archive)}: {wrong}; get it again at {source.home}")
    pooch.get_logger().setLevel("WARNING")  # it would tell again what the notice told
    try:
        path = archive or pooch.retrieve(source.url, source.sha256, source.archive, folder, progressbar=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.tmp-", dir=target.parent) as staging:
            new = Path(staging, "new")
            print("unpacking it, which takes minutes", flush=True)
            # What would lie outside of the folder is left out of a zip file, and makes a tar file an error.
            how = {"format": "zip"} if source.archive.endswith(".zip") else {"format": "tar", "filter": "data"}
            shutil.unpack_archive(path, new, **how)
            root = next(place for place in (new, *sorted(new.iterdir())) if find_categories(place))
            write_json(root / MARKER, vars(source))
            root.rename(target)  # which is absent or empty
        if archive is None:
            shutil.rmtree(folder)
    except (OSError, ValueError, tarfile.TarError) as error:  # the network, the disk, a wrong hash; a hostile name
        said = f"{one_line(error, 500).rstrip('.')}; check the network, free space and permissions, and run this again"
        raise RunError(f"{source.title}: {said}, or name {source.archive} of {source.home} with --archive.") from error
    return target
