"""Public data sets by name: the archive is fetched by pooch into NAME.download, checked against its SHA-256, and
unpacked; the folder NAME appears in one step, complete."""

import shutil
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pooch

from ..files import InputError, RunError, file_sha256, one_line, printable, write_json
from .layouts import find_categories

MARKER = "irf_download.json"  # in a finished data set: what it is and where it came from


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and on which terms. `url` is empty where only a person can get the archive."""

    title: str
    archive: str  # the archive's file name; its suffix says how to unpack it
    n_bytes: int  # of the archive as last heard of, for the notice
    sha256: str  # hex
    url: str
    home: str  # the page where a person finds it
    licence: str  # and what it allows
    citation: str


SOURCES = {  # by the name on the command line, and of the folder
    "mvtec_ad": Source(
        title="MVTec AD",
        archive="mvtec_anomaly_detection.tar.xz",
        n_bytes=5_264_982_680,
        sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        url="",  # handed out behind a form
        home="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        licence="CC BY-NC-SA 4.0: not for commercial use; name the authors; share changes under the same licence",
        citation="Bergmann, Fauser, Sattlegger, Steger: MVTec AD - A Comprehensive Real-World Dataset for "
        "Unsupervised Anomaly Detection, CVPR 2019",
    ),
    "visa": Source(
        title="VisA",
        archive="VisA_20220922.tar",
        n_bytes=1_929_840_640,
        sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        home="https://github.com/amazon-science/spot-diff",
        licence="CC BY 4.0: free to use and share, also commercially; name the authors",
        citation="Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-Supervised Pre-training for "
        "Anomaly Detection and Segmentation, ECCV 2022",
    ),
    "btad": Source(
        title="BTAD",
        archive="btad.zip",
        n_bytes=1_229_193_337,
        sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
        url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
        home="https://github.com/pankajmishra000/VT-ADL",
        # Unsettled: the README at `home` has named CC BY-SA 4.0, anomalib's documentation names CC BY-NC-SA 4.0.
        licence="CC BY-NC-SA 4.0 or CC BY-SA 4.0 (unsure: sources differ): "
        "ask its authors before commercial use; name them; share changes under the same licence",
        citation="Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL - A Vision Transformer Network for Image "
        "Anomaly Detection and Localization, ISIE 2021",
    ),
}


def notice(source: Source) -> str:
    """What somebody should know before the download: licence, citation, origin and size; several lines."""
    return (
        f"data set: {source.title}\n"
        f"licence:  {source.licence}\n"
        f"cite:     {source.citation}\n"
        f"archive:  {source.archive}, about {source.n_bytes / 1e9:.1f} GB, and as much again unpacked\n"
        f"from:     {source.url or source.home}"
    )


def is_finished(source: Source, target: Path) -> bool:
    """Whether `target` is the data set as :func:`download` left it. InputError if it holds anything else."""
    marker = Path(target, MARKER)
    if not target.exists() or target.is_dir() and not any(target.iterdir()):
        return False
    if marker.is_file() and source.sha256 in marker.read_text(encoding="utf-8", errors="replace"):
        return True
    raise InputError(f"{printable(target)}: exists and is not {source.title}; name another folder with --to.")


def download(source: Source, target: Path, archive: Path | None = None) -> Path:
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
            if source.archive.endswith(".zip"):
                shutil.unpack_archive(path, new, "zip")  # which leaves out what would lie outside of the folder
            else:
                shutil.unpack_archive(path, new, "tar", filter="data")  # which refuses it
            root = next(place for place in (new, *sorted(new.iterdir())) if find_categories(place))
            write_json(root / MARKER, asdict(source))
            root.rename(target)  # which is absent or empty
        if archive is None:
            shutil.rmtree(folder)
    except (OSError, ValueError, tarfile.TarError) as error:  # the network, the disk, a wrong hash; a hostile name
        said = f"{one_line(error, 500).rstrip('.')}; check the network, free space and permissions, and run this again"
        raise RunError(f"{source.title}: {said}, or name {source.archive} of {source.home} with --archive.") from error
    return target
