"""The book: what it is built from, and, where it has been built, the site as a browser shows it."""

import functools
import http.server
import importlib.util
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "book" / "_build" / "html"
STAGED = ROOT / "book" / "_build" / "source"
EXTERNAL = re.compile(r"[a-z]+:|//")

spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


# --- what it is built from ----------------------------------------------------------------------------------------


def chapters(toc: dict) -> list[str]:
    return [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]


def test_contents_hold_every_notebook_in_order():
    names = [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert len(names) >= 13
    assert [name for name in chapters(build.toc()) if name.startswith("notebooks/")] == names
    assert chapters(build.toc())[: len(names)] == names, "before anything else"
    assert build.toc()["root"] == "index"


@pytest.fixture
def small_house(tmp_path, monkeypatch):
    """A repository of two notebooks, the first executed by two runs, with a README."""
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "book.css"):
        shutil.copy(ROOT / "book" / name, tmp_path / "book")
    for folder, mark in (("notebooks", "plain"), ("results/a/notebooks", "a"), ("results/b/notebooks", "b")):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("00_x", "01_y") if mark != "a" else ("00_x",):
            head = nbformat.v4.new_markdown_cell("# Q?\n[next](01_y.ipynb) [home](../README.md#top)", id="head")
            data = {"text/plain": "100%", build.WIDGET: {}}
            outputs = [nbformat.v4.new_output("display_data", data), nbformat.v4.new_output("stream", text="hi")]
            code = nbformat.v4.new_code_cell(f"'{mark}'", id="code", outputs=[] if mark == "plain" else outputs)
            notebook = nbformat.v4.new_notebook(cells=[head, code], metadata={"widgets": {}})
            nbformat.write(notebook, tmp_path / folder / f"{name}.ipynb")
    (tmp_path / "results" / "README.md").write_text("# results/\n[up](../README.md)\n")
    (tmp_path / "results" / "a" / "t.csv").write_text("1")
    (tmp_path / "README.md").write_text("# Home\n[a](results/a) [t](results/a/t.csv) [x](notebooks/00_x.ipynb)\n")
    return tmp_path


def test_the_first_run_with_a_copy_gives_it(small_house):
    first, second = build.notebooks()
    assert build.source_of(first, ("a", "b")) == (small_house / "results/a/notebooks/00_x.ipynb", "a")
    assert build.source_of(second, ("a", "b")) == (small_house / "results/b/notebooks/01_y.ipynb", "b")
    assert build.source_of(second, ("a",)) == (second, None)
    page = build.page_of(first, ("a", "b"))
    assert "run `a`" in page.cells[1].source and "1 read otherwise today" in page.cells[1].source
    assert page.cells[2].source == "'a'" and page.cells[0].source.endswith("(../index.md#top)")
    assert "widgets" not in page.metadata and build.WIDGET not in page.cells[2].outputs[0].data
    assert "without outputs" in build.page_of(second, ("a",)).cells[1].source


def test_links_lead_to_what_is_staged(small_house, tmp_path):
    build.stage(tmp_path / "staged", ("a", "b"))
    index = (tmp_path / "staged" / "index.md").read_text()
    assert "[a](results/README.md)" in index, "a folder is described by the nearest README"
    assert "[up](../index.md)" in (tmp_path / "staged" / "results" / "README.md").read_text()
    assert (tmp_path / "staged" / "results" / "a" / "t.csv").read_text() == "1"
    assert chapters(build.toc()) == ["notebooks/00_x", "notebooks/01_y", "results/README"]


def test_a_run_without_notebooks_is_refused(small_house, capsys):
    assert build.main(["nowhere"]) == 1
    assert "results/nowhere has no executed notebooks" in capsys.readouterr().err


def test_every_page_and_every_link_has_its_file(tmp_path):
    folder = tmp_path / "staged"
    build.stage(folder)
    toc = yaml.safe_load((folder / "_toc.yml").read_text())
    pages = {path for path in folder.rglob("*") if path.suffix in (".md", ".ipynb")}
    listed = {next(folder.glob(f"{name}.*")) for name in [toc["root"], *chapters(toc)]}
    assert pages == listed
    for page in pages:
        for link in build.LINK.findall(build.prose(page)):
            assert (page.parent / link).is_file(), f"{page.relative_to(folder)} links to {link}"


def test_nothing_is_executed_and_tools_are_pinned():
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    assert config["execute"] == {"execute_notebooks": "off"}
    lines = (ROOT / "book" / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/book/_build/" in ignored and ".venv-book/" in ignored


# --- the site -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site():
    if not (SITE / "index.html").exists():
        pytest.skip("no built site; `make book` builds it")
    if yaml.safe_load((STAGED / "_toc.yml").read_text()) != build.toc():
        pytest.skip("the built site has other pages than the repository now; `make book` builds it anew")
    return SITE


class Page(HTMLParser):
    """What a page of the site refers to, and the places in it that can be referred to."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded, self.links, self.ids = [], [], set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if "src" in attrs:
            self.loaded.append(attrs["src"])
        if "href" in attrs:
            (self.loaded if tag == "link" else self.links).append(attrs["href"])


def test_no_page_loads_from_elsewhere_and_no_link_is_broken(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) >= len(build.notebooks()) + 1
    for path, page in pages.items():
        name = path.relative_to(site)
        assert not [url for url in page.loaded if EXTERNAL.match(url) and not url.startswith("data:")], name
        assert "CC BY-NC-SA 4.0" in page.text, f"{name} names the images' licence"
        for url in page.loaded + page.links:
            if EXTERNAL.match(url):
                continue
            file, place = urldefrag(url)
            target = (path.parent / unquote(file.split("?")[0])).resolve() if file else path
            assert target.exists(), f"{name} refers to {url}"
            if place and target in pages and name.stem not in ("genindex", "search"):
                assert unquote(place) in pages[target].ids, f"{name} refers to {url}"


@pytest.fixture(scope="module")
def address(site):
    """The site, served on this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver; on Debian: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-dev-shm-usage disable-background-networking no-first-run"
    for flag in (*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    # As without a network: a page that needs one shows it here.
    options.add_argument("--no-proxy-server")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def show(browser, address: str, page: str, width: int) -> None:
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"{address}/{page}")
    browser.execute_async_script(  # MathJax loads only on pages with equations
        "const done = arguments[0]; window.MathJax?.startup ? MathJax.startup.promise.then(() => done()) : done()"
    )


@pytest.mark.parametrize("width", [1440, 420])
@pytest.mark.parametrize("page", ["index", "notebooks/00_start_here", "notebooks/06_timestep_invariance"])
def test_a_page_is_rendered(browser, address, page, width, tmp_path):
    show(browser, address, f"{page}.html", width)
    images = browser.execute_script(
        "return [...document.querySelectorAll('article img')].map(i => [i.src, i.complete, i.naturalWidth])"
    )
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('article mjx-container')].map(m => m.getBoundingClientRect())"
        ".map(box => [box.width, box.height])"
    )
    assert browser.save_screenshot(str(tmp_path / f"{Path(page).name}-{width}.png"))

    assert all(complete and natural > 0 for _, complete, natural in images), images
    if page == "index":
        assert len(images) == len(re.findall(r"!\[", (STAGED / "index.md").read_text())) > 0
    else:
        cells = nbformat.read(STAGED / f"{page}.ipynb", as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert len(images) == sum("image/png" in output.get("data", {}) for output in outputs)
        assert len(boxes) == browser.execute_script("return document.querySelectorAll('article .math').length") > 0
        assert all(w > 0 and h > 0 for w, h in boxes)
        assert not browser.execute_script("return document.querySelectorAll('mjx-merror').length")
    elsewhere = browser.execute_script(
        "return performance.getEntriesByType('resource').map(r => r.name).filter(u => !u.startsWith(location.origin))"
    )
    assert not elsewhere
    # What a script writes to the console is its own affair (the theme complains of its own default); errors are not.
    errors = [entry for entry in browser.get_log("browser") if entry["source"] in ("javascript", "network")]
    assert not [entry for entry in errors if "favicon" not in entry["message"]]
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "wider than the window"


def test_the_contents_lead_through_the_notebooks(browser, address):
    show(browser, address, "index.html", 1440)
    links = browser.find_elements("css selector", ".bd-sidebar-primary nav a.reference.internal")
    links = [link for link in links if "/notebooks/" in link.get_attribute("href")]
    assert [link.text for link in links] == [path.stem.replace("_", " ") for path in build.notebooks()]
    links[0].click()
    for notebook in build.notebooks():
        assert browser.current_url.endswith(f"/notebooks/{notebook.stem}.html")
        browser.get(browser.find_element("css selector", "a.right-next").get_attribute("href"))
