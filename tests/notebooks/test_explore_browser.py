"""Notebook 14 in a real browser: JupyterLab on 127.0.0.1, headless Chromium, a slider that moves and a picture that
follows. Skipped, with the reason, where Chromium or its driver is not installed."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import urllib3
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

pytest.importorskip("selenium", reason="the browser tests need the extra dev")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from irf_lib.run.results import Run

ROOT = Path(__file__).resolve().parents[2]
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with chromedriver here (Debian: apt install chromium chromium-driver)"
)
TINY = {"backbone": "rgb", "image_size": 32, "feature_size": 8, "width": 64, "depth": 1, "steps": 20}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
PATIENCE = 180  # seconds, for a machine that does other things as well


APP = "const app = window.jupyterapp, panel = app && [...app.shell.widgets('main')].find(one => one.sessionContext);"
KERNEL_IS_IDLE = APP + "return panel?.sessionContext.session?.kernel?.status === 'idle';"
# Headless, no widget has the focus, and commands go to the one that has.
RUN_ALL = APP + "app.shell.activateById(panel.id); app.commands.execute('notebook:run-all-cells');"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, photograph):
    """A copy of the notebook whose parameters name a small run that has been trained."""
    folder = tmp_path_factory.mktemp("lab")
    for seed, (kind, n) in enumerate({"train/good": 30, "test/good": 4, "test/square": 4}.items()):
        photograph(folder / "set/ramp" / kind, n, seed, defect=kind == "test/square")
    given = {"data": str(folder / "set"), "out": str(folder / "out"), "settings": TINY, "device": "cpu"}
    Run.open("03_train", category="", seed=0, **given).detector(progress=False)
    notebook = load_notebook_node(str(ROOT / "notebooks" / "14_explore.ipynb"))
    nbformat.write(parameterize_notebook(notebook, given | {"alpha": 0.2}), folder / "explore.ipynb")
    return folder / "explore.ipynb"


@pytest.fixture(scope="module")
def lab(notebook):
    """The address of a JupyterLab that serves the notebook's folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = notebook.parent / "home"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"),
                                "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", "--IdentityProvider.token=sesame", f"--notebook-dir={notebook.parent}",
               "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]  # fmt: skip
    process = subprocess.Popen(command, env=environment, cwd=notebook.parent)
    try:
        retries = urllib3.Retry(PATIENCE, backoff_factor=0.1, backoff_max=1)  # until it listens
        urllib3.request("GET", f"http://127.0.0.1:{port}/api", retries=retries)
        yield f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?token=sesame"
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_until(page, condition):
    """Until the page fulfils it and the kernel has nothing more to do."""
    WebDriverWait(page, PATIENCE).until(condition)
    WebDriverWait(page, PATIENCE).until(lambda d: d.execute_script(KERNEL_IS_IDLE))


@pytest.fixture(scope="module")
def page(lab, tmp_path_factory):
    """A browser in which every cell of the notebook has been run."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, "--window-size=1300,1500", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(lab)
        wait_until(driver, lambda d: d.execute_script(KERNEL_IS_IDLE))
        driver.execute_script(RUN_ALL)
        wait_until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "img.widget-image"))
        yield driver
    finally:
        driver.quit()


def control(page, label):
    """The slider with this label."""
    boxes = page.find_elements(By.CSS_SELECTOR, ".widget-hslider")
    return next(box for box in boxes if box.find_element(By.CSS_SELECTOR, "label").text == label)


def state(page):
    """(verdict line without its time, picture) as they stand in the page."""
    note = page.find_element(By.CSS_SELECTOR, ".widget-html-content").text
    return re.sub(r"\(\d+ ms\)", "", note), page.find_element(By.CSS_SELECTOR, "img.widget-image").get_attribute("src")


def test_a_slider_moves_the_picture(page):
    assert "Traceback" not in page.find_element(By.CSS_SELECTOR, ".jp-Notebook").text, "no cell failed"
    slider = control(page, "t")
    handle = slider.find_element(By.CSS_SELECTOR, ".noUi-handle")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    t = int(slider.find_element(By.CSS_SELECTOR, ".widget-readout").text)
    before = state(page)
    handle.send_keys(Keys.ARROW_RIGHT)
    wait_until(page, lambda d: state(d)[1] != before[1])
    now = state(page)
    assert "score" in before[0] and before[0] != now[0], "another timestep, another score"
    assert slider.find_element(By.CSS_SELECTOR, ".widget-readout").text == str(t + 5)
    picture = page.find_element(By.CSS_SELECTOR, "img.widget-image")
    assert page.execute_script("return arguments[0].naturalWidth", picture) > 800


def test_alpha_moves_the_threshold_and_not_the_score(page):
    score, limit = (r"score ([-\d.]+) nats", r"threshold ([-\d.]+)")
    before = state(page)
    control(page, "alpha").find_element(By.CSS_SELECTOR, ".noUi-handle").send_keys(Keys.ARROW_RIGHT * 20)
    wait_until(page, lambda d: control(d, "alpha").find_element(By.CSS_SELECTOR, ".widget-readout").text == "0.40")
    wait_until(page, lambda d: re.search(limit, state(d)[0])[1] != re.search(limit, before[0])[1])
    now = state(page)
    assert re.search(score, before[0])[1] == re.search(score, now[0])[1]
    assert float(re.search(limit, now[0])[1]) < float(re.search(limit, before[0])[1])
