"""The explorer as its users meet it: JupyterLab in a real browser, a slider moved, the picture seen to change."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from hybridlib.paths import OUTPUTS, ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
SHOTS = OUTPUTS / "explorer"  # screenshots, to be looked at
LOADED_S, MOVED_S = 240, 60  # longest waits, on a busy machine
QUIET = {
    "LabApp.news_url": "None",
    "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    "LabApp.extension_manager": "readonly",
    "ServerApp.open_browser": "False",
    "ServerApp.allow_root": "True",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab that knows no settings but its own, with a copy of the notebook as its root."""
    home = tmp_path_factory.mktemp("lab")
    root = home / "notebooks"
    root.mkdir()
    shutil.copy(ROOT / "notebooks" / "00_explorer.ipynb", root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(8)
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = os.environ | {name: str(home / name.lower()) for name in (*folders, "JUPYTERLAB_SETTINGS_DIR")}
    settings = home / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", "--ip=127.0.0.1", f"--ServerApp.root_dir={root}"]
    command += [f"--IdentityProvider.token={token}", *(f"--{name}={value}" for name, value in QUIET.items())]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=root)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            assert server.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"JupyterLab did not start: {(home / 'log').read_text()}")
        yield f"{address}/doc/tree/00_explorer.ipynb?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install .[browser]")
    chromium, driver = (_which(*names) for names in (("chromium", "chromium-browser"), ("chromedriver",)))
    if not (chromium and driver):
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, "--window-size=1280,1100", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield window
    window.quit()


def _which(*names):
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="module")
def opened(browser, lab):
    """The browser with the notebook run and the first picture drawn whole."""
    browser.get(lab)
    _until(browser, ".jp-Notebook-ExecutionIndicator[data-status='idle']", LOADED_S)
    _until(browser, '[data-command="notebook:run-cell-and-select-next"]', LOADED_S)
    try:
        _wait(lambda: _runs(browser), LOADED_S, "the cell to run")
        _wait(lambda: len(images(browser)) > 3, LOADED_S, "frames on the branches")
    except pytest.fail.Exception:
        _shot(browser, "failed")
        raise
    _wait(lambda: "planner" in text(browser, ".hl-note"), LOADED_S, "curves of the full runs")
    return browser


def test_a_moved_slider_changes_the_picture(opened):
    from selenium.webdriver import Keys

    before = _wait(lambda: images(opened), MOVED_S, "a picture")
    opened.execute_script("arguments[0].scrollIntoView()", opened.find_element("css selector", ".widget-tab"))
    assert all(charts(opened)), "a broken picture is shown"
    _shot(opened, "first")
    handle = slider(opened, "common step")
    for _ in range(6):
        handle.send_keys(Keys.ARROW_RIGHT)
    _wait(lambda: images(opened) and images(opened)[-1] != before[-1], MOVED_S, "another picture")
    _wait(lambda: "handover" in text(opened, ".hl-tree"), MOVED_S, "its noise level")


def test_an_unknown_word_is_named_where_the_user_looks(opened):
    box = opened.find_elements("css selector", ".hl-personal input")[0]
    box.send_keys(" dragon")
    _wait(lambda: "'dragon'" in said(opened), MOVED_S, "a sentence that names the word")
    _shot(opened, "unknown-word")
    box.send_keys(*["\b"] * len(" dragon"))
    _wait(lambda: not said(opened), MOVED_S, "the sentence to go")


def test_the_edge_plays(opened):
    _wait(lambda: _opens(opened, ".widget-tab .lm-TabBar-tab", 1), MOVED_S, "the second tab")
    _wait(lambda: "mean delay" in text(opened, ".hl-cards"), MOVED_S, "an episode")
    _wait(lambda: charts(opened), MOVED_S, "its charts")
    assert all(charts(opened)), "a broken picture is shown"
    _shot(opened, "edge")


def test_the_console_has_no_error(opened):
    errors = [entry["message"] for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


def _runs(browser):
    """Run the code cell unless it runs; a click is lost where JupyterLab is still busy with itself."""
    prompt = browser.find_element("css selector", ".jp-CodeCell .jp-InputPrompt")
    if "*" not in prompt.text:
        prompt.click()
        browser.find_element("css selector", '[data-command="notebook:run-cell-and-select-next"]').click()
        time.sleep(1)
    return "*" in prompt.text


def _opens(browser, tabs, index):
    """Click a tab; true once it is the one in front."""
    tab = browser.find_elements("css selector", tabs)[index]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", tab)
    tab.click()
    return tab.get_attribute("aria-selected") == "true"


def images(browser):
    """Pictures in the tree, in the order in which they are drawn; the last is a final one."""
    return [node.get_attribute("href") for node in browser.find_elements("css selector", ".hl-tree image")]


def charts(browser):
    """Of the charts in sight: whether the browser could draw each."""
    script = "return [...document.querySelectorAll('img.widget-image')].filter(i => i.offsetParent)"
    return browser.execute_script(f"{script}.map(i => i.complete && i.naturalWidth > 0)")


def said(browser):
    return text(browser, ".hl-error")


def text(browser, selector):
    return " ".join(node.text for node in browser.find_elements("css selector", selector))


def slider(browser, label):
    """The handle of the slider with this label."""
    for row in browser.find_elements("css selector", ".widget-slider"):
        if row.find_element("css selector", ".widget-label").text == label:
            return row.find_element("css selector", ".noUi-handle")
    raise AssertionError(f"no slider {label!r}")


def _until(browser, selector, seconds):
    return _wait(lambda: browser.find_elements("css selector", selector), seconds, selector)[0]


def _wait(condition, seconds, what):
    """What the condition gives as soon as it is true: asked again, it may not be."""
    from selenium.common import exceptions

    moving = (  # redrawn while it was read, not there yet, or behind something that JupyterLab is still moving
        exceptions.StaleElementReferenceException,
        exceptions.NoSuchElementException,
        exceptions.ElementNotInteractableException,
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except moving:
            pass
        time.sleep(0.2)
    pytest.fail(f"waited {seconds} s in vain for {what}")


def _shot(browser, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SHOTS / f"{name}.png"))
