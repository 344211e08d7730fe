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
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(18, 22, 28)"
SERIES = {LIGHT: "rgb(213, 94, 0)", DARK: "rgb(245, 130, 49)"}
PAGES = ("page", "sweep_page")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the address of a page with a comparison and a run."""
    directory = tmp_path_factory.mktemp("browser")
    sizes = {"num_seeds": 3, "num_examples": 500, "num_epochs": 30}
    report_files.write_comparison(directory, names=report_files.NASTY, **sizes)
    return write.write_report([directory, directory / "separable/seed0"]).as_uri()


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory):
    """Return the address of the page of a sweep."""
    directory = tmp_path_factory.mktemp("sweep")
    importance = {name: 0.2 for name in sweep_files.NAMES}
    sweep_files.write_sweep(directory, importance=importance, num_examples=300)
    return write.write_report([directory]).as_uri()


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
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", size | {"mobile": width < 500}
    )
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


def check_theme(browser, background):
    """Check the colors of the page and of its charts."""
    assert read(browser, "getComputedStyle(document.body).backgroundColor") == (
        background
    )
    script = "[...document.querySelectorAll('.chart svg path')].flatMap((path) => "
    script += "[getComputedStyle(path).fill, getComputedStyle(path).stroke])"
    found = set(read(browser, script)) & set(SERIES.values())
    assert found == {SERIES[background]}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (400, "dark")])
def test_every_chart_is_drawn_and_fits(browser, request, name, width, theme):
    address = request.getfixturevalue(name)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    show(browser, address, width, theme)
    assert browser.get_log("browser") == []
    messages = [entry["message"] for entry in browser.get_log("performance")]
    sent = [m for m in messages if '"Network.requestWillBeSent"' in m]
    assert sent  # The page itself.
    assert not any('"url":"http' in message for message in sent)
    places, drawn = (
        read(browser, f"document.querySelectorAll('{selector}').length")
        for selector in (".chart", ".chart svg.marks")
    )
    assert places == drawn >= 6
    assert read(browser, "document.documentElement.scrollWidth") <= width
    script = (
        "[...document.querySelectorAll('.chart')].filter((place) =>"
        " place.querySelector('svg').getBoundingClientRect().width"
        " > place.getBoundingClientRect().width + 1).length"
    )
    assert read(browser, script) == 0
    check_theme(browser, LIGHT if theme == "light" else DARK)


def test_the_button_changes_the_theme_for_good(browser, page):
    show(browser, page, 1280)
    browser.find_element("id", "theme").click()
    check_theme(browser, DARK)
    browser.refresh()
    wait_for(browser, "document.documentElement.dataset.drawn === 'true'")
    check_theme(browser, DARK)
    browser.find_element("id", "theme").click()
    check_theme(browser, LIGHT)
    browser.execute_script("localStorage.clear()")


@pytest.mark.parametrize(
    ("name", "title", "words"),
    [
        ("page", "Validation loss", ["epoch", "standard", "separable_macs"]),
        (
            "sweep_page",
            "Validation accuracy of each",
            ["trial", "state", "dropout_rate"],
        ),
    ],
)
def test_hovering_shows_the_values(browser, request, name, title, words):
    from selenium.webdriver.common.action_chains import ActionChains

    show(browser, request.getfixturevalue(name), 1280)
    script = (
        "return [...document.querySelectorAll('figure')].find((figure) =>"
        " figure.innerText.trim().startsWith(arguments[0])).querySelector('svg')"
    )
    chart = browser.execute_script(script, title)
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", chart)
    ActionChains(browser).move_to_element_with_offset(chart, 20, 10).perform()
    ActionChains(browser).move_by_offset(2, 2).perform()
    tooltip = "document.querySelector('#vg-tooltip-element.visible')"
    wait_for(browser, f"Boolean({tooltip})")
    text = read(browser, f"{tooltip}.innerText")
    assert all(word in text for word in words)
    assert "undefined" not in text
