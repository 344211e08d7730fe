"""The report's page in a browser: from disk, in both themes, wide and narrow."""

import shutil
import time

import pytest

from dwsep_jax.report import write
from tests.report import report_files, sweep_files

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="there is no Chromium with its ChromeDriver"
)
SECONDS = 60


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the address of a page with a comparison, a run and a sweep."""
    directory = tmp_path_factory.mktemp("browser")
    names = report_files.NASTY
    report_files.write_comparison(directory, names=names, num_epochs=30)
    sweep_files.write_sweep(directory / "sweep", num_examples=300)
    places = [directory, directory / "separable/seed0", directory / "sweep"]
    return write.write_report(places).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"),
        *("no-first-run", "disable-background-networking", "disable-sync"),
        *("disable-component-update", "disable-quic"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{argument}")
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(browser, page, width, theme="light"):
    """Open the page at a width in a theme; wait until its charts are drawn."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1}
    size["mobile"] = width < 500
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)
    wait_for(browser, "document.documentElement.dataset.drawn === 'true'")


def read(browser, script):
    return browser.execute_script(f"return {script}")


def wait_for(browser, script):
    end = time.monotonic() + SECONDS
    while not read(browser, script):
        assert time.monotonic() < end, script
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("width", "theme", "background", "series"),
    [
        (1280, "light", "rgb(255, 255, 255)", "rgb(213, 94, 0)"),
        (400, "dark", "rgb(18, 22, 28)", "rgb(245, 130, 49)"),
    ],
)
def test_every_chart_is_drawn_and_fits(browser, page, width, theme, background, series):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    show(browser, page, width, theme)
    assert browser.get_log("browser") == []
    messages = [entry["message"] for entry in browser.get_log("performance")]
    sent = [m for m in messages if '"Network.requestWillBeSent"' in m]
    assert sent  # The page itself.
    assert not any('"url":"http' in message for message in sent)
    places, drawn = (
        read(browser, f"document.querySelectorAll('{selector}').length")
        for selector in (".chart", ".chart svg.marks")
    )
    assert places == drawn == 6 + 5 + 5
    assert read(browser, "document.documentElement.scrollWidth") <= width
    script = (
        "[...document.querySelectorAll('.chart')].filter((place) =>"
        " place.querySelector('svg').getBoundingClientRect().width"
        " > place.getBoundingClientRect().width + 1).length"
    )
    assert read(browser, script) == 0
    color = read(browser, "getComputedStyle(document.body).backgroundColor")
    assert color == background
    script = "[...document.querySelectorAll('.chart svg path')].flatMap((path) => "
    script += "[getComputedStyle(path).fill, getComputedStyle(path).stroke])"
    assert series in read(browser, script)


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Accuracy against MACs", ["variant", "test accuracy (%)", "MACs", "low"]),
        ("Validation loss", ["series", "epoch", "mean", "separable"]),
        ("Validation accuracy by optimizer", ["trial", "dropout_rate"]),
        ("Confusion matrix", ["true class", "images"]),
    ],
)
def test_hovering_shows_the_values(browser, page, title, words):
    from selenium.webdriver.common.action_chains import ActionChains

    show(browser, page, 1280)
    script = (
        "return [...document.querySelectorAll('figure')].find((figure) =>"
        " figure.innerText.trim().startsWith(arguments[0])).querySelector("
        "'.mark-symbol.role-mark path, .mark-rect.role-mark path')"
    )
    mark = browser.execute_script(script, title)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    tooltip = "document.querySelector('#vg-tooltip-element.visible')"
    wait_for(browser, f"Boolean({tooltip})")
    text = read(browser, f"{tooltip}.innerText")
    assert all(word in text for word in words)
    assert "undefined" not in text
