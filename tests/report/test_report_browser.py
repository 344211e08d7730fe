"""The report's page in a browser: from disk, in both themes, wide and narrow."""

import shutil
import time

import pytest

from dwsep_jax import report
from tests.report import report_files, sweep_files

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="there is no Chromium with its ChromeDriver"
)
SECONDS = 60


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the address of a page that has a comparison and a run in it."""
    directory = tmp_path_factory.mktemp("browser")
    sizes = {"num_seeds": 3, "num_examples": 500, "num_epochs": 30}
    report_files.write_comparison(directory, **sizes)
    return report.write_report([directory, directory / "separable/seed0"]).as_uri()


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory):
    """Return the address of the page of a sweep."""
    directory = tmp_path_factory.mktemp("sweep")
    importance = {name: 0.2 for name in sweep_files.NAMES}
    sweep_files.write_sweep(directory, importance=importance, num_examples=300)
    return report.write_report([directory]).as_uri()


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
    wait_for(browser, "return document.documentElement.dataset.drawn === 'true'")


def wait_for(browser, script):
    end = time.monotonic() + SECONDS
    while not browser.execute_script(script):
        assert time.monotonic() < end, script
        time.sleep(0.05)


def test_it_opens_from_disk_without_errors_or_requests(browser, page):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    show(browser, page, 1280)
    assert browser.get_log("browser") == []
    sent = [
        entry["message"]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert len(sent) >= 1  # The page itself.
    assert not any('"url":"http' in message for message in sent)
    charts = "return document.querySelectorAll('.chart').length"
    drawn = "return document.querySelectorAll('.chart svg.marks').length"
    assert browser.execute_script(charts) == browser.execute_script(drawn) == 13


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_is_wider_than_the_screen(browser, page, width):
    show(browser, page, width)
    script = "return document.documentElement.scrollWidth"
    assert browser.execute_script(script) <= width
    # A wide table scrolls inside its box.
    script = (
        "return [...document.querySelectorAll('.scroll')]"
        ".some((box) => box.scrollWidth > box.clientWidth)"
    )
    assert browser.execute_script(script) or width > 500


def test_it_follows_the_system_and_the_button(browser, page):
    light, dark = "rgb(255, 255, 255)", "rgb(18, 22, 28)"
    series = {light: "rgb(213, 94, 0)", dark: "rgb(245, 130, 49)"}

    def check(background):
        script = "return getComputedStyle(document.body).backgroundColor"
        assert browser.execute_script(script) == background
        script = (
            "return [...document.querySelectorAll('.chart svg path')]"
            ".map((path) => getComputedStyle(path).fill)"
        )
        fills = set(browser.execute_script(script))
        assert fills & set(series.values()) == {series[background]}

    show(browser, page, 1280, "dark")
    check(dark)
    show(browser, page, 1280, "light")
    check(light)
    button = browser.find_element("id", "theme")
    button.click()
    check(dark)
    assert button.text == "Light theme"
    browser.refresh()
    wait_for(browser, "return document.documentElement.dataset.drawn === 'true'")
    check(dark)  # It is remembered.
    browser.find_element("id", "theme").click()
    check(light)


def hover(browser, page, title):
    """Return what the tooltip says near the middle of the chart of that title."""
    from selenium.webdriver.common.action_chains import ActionChains

    show(browser, page, 1280)
    script = (
        "return [...document.querySelectorAll('figure')].find((figure) =>"
        " figure.innerText.trim().startsWith(arguments[0])).querySelector('svg')"
    )
    chart = browser.execute_script(script, title)
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", chart)
    ActionChains(browser).move_to_element_with_offset(chart, 20, 10).perform()
    ActionChains(browser).move_by_offset(2, 2).perform()
    tooltip = "document.querySelector('#vg-tooltip-element.visible')"
    wait_for(browser, f"return Boolean({tooltip})")
    return browser.execute_script(f"return {tooltip}.innerText")


def test_a_hover_tells_every_variant_of_an_epoch(browser, page):
    text = hover(browser, page, "Validation loss")
    for words in ("epoch", "separable", "standard", "separable_macs"):
        assert words in text
    assert "undefined" not in text


def test_a_sweep_is_drawn_in_both_themes_and_fits_a_phone(browser, sweep_page):
    browser.get(sweep_page)
    browser.execute_script("localStorage.clear()")  # No test before has chosen.
    browser.get_log("browser")
    for width, theme, winner in (
        (1280, "light", "rgb(213, 94, 0)"),
        (390, "dark", "rgb(245, 130, 49)"),
    ):
        show(browser, sweep_page, width, theme)
        assert browser.get_log("browser") == []
        charts = "return document.querySelectorAll('.chart').length"
        drawn = "return document.querySelectorAll('.chart svg.marks').length"
        assert browser.execute_script(charts) == browser.execute_script(drawn) == 10
        script = "return document.documentElement.scrollWidth"
        assert browser.execute_script(script) <= width
        # What does not fit into its chart: none of the charts is cut off.
        script = (
            "return [...document.querySelectorAll('.chart')].filter((place) =>"
            " place.querySelector('svg').getBoundingClientRect().width"
            " > place.getBoundingClientRect().width + 1).length"
        )
        assert browser.execute_script(script) == 0
        script = (
            "return [...document.querySelectorAll('.chart svg path')]"
            ".map((path) => getComputedStyle(path).stroke)"
        )
        assert winner in browser.execute_script(script)


def test_a_hover_tells_the_trial_of_a_line(browser, sweep_page):
    text = hover(browser, sweep_page, "Each trial as a line")
    for words in ("trial", "state", "accuracy (%)", "optimizer", "dropout_rate"):
        assert words in text
    assert "undefined" not in text
