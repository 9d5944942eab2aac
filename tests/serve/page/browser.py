"""The page in headless Chromium."""

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def start_browser():
    """RETURNS (WebDriver): A browser. Without one, the test is skipped."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("the page is not tested, since chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for name in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


class Page:
    """The page of a server.

    driver (WebDriver): The browser.

    Errors in the browser's console are failures, unless one of `expected` is in their message.
    """

    def __init__(self, driver):
        self.driver = driver
        self.expected = []

    def open(self, url, selector="#settings"):
        """Open a page, and wait until something is visible."""
        self.driver.get(url)
        self.wait_for(selector)

    def resize(self, width=1280, height=800, scheme="light"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script, *args):
        return self.driver.execute_script(script, *args)

    def texts(self, selector):
        """RETURNS (List[str]): The texts of all elements, exactly."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.run(script, selector)

    def is_visible(self, selector):
        return any(element.is_displayed() for element in self.all(selector))

    def wait_until(self, is_true):
        return WebDriverWait(self.driver, 60, 0.05).until(lambda _: is_true())

    def wait_for(self, selector):
        self.wait_until(lambda: self.is_visible(selector))

    def click(self, selector):
        self.one(selector).click()

    def ask(self, question):
        self.one("#question").send_keys(question + Keys.ENTER)

    def wait_for_the_end(self):
        """Wait until no answer is being written."""
        self.wait_until(lambda: self.is_visible("#send") and not self.is_visible("#stop"))

    def answers(self):
        """RETURNS (List[str]): The answers, without the labels next to entities."""
        return self.run("""
            return [...document.querySelectorAll(".assistant .turn-text")].map((text) => {
              const copy = text.cloneNode(true);
              copy.querySelectorAll(".tag").forEach((tag) => tag.remove());
              return copy.textContent;
            })
        """)

    def marks(self):
        """RETURNS (List): Text, label and whether it is final, of each entity in the answers."""
        found = self.run("""
            return [...document.querySelectorAll(".turn .entity")].map((mark) => [
              mark.firstChild.data, mark.ariaDescription ?? mark.getAttribute("aria-description"),
              mark.classList.contains("final")])
        """)
        return [(text, description.split(",")[0], final) for text, description, final in found]

    def check_console(self):
        """No error, and nothing refused by the browser, was logged."""
        logged = [e["message"] for e in self.driver.get_log("browser") if e["level"] != "INFO"]
        assert [m for m in logged if not any(part in m for part in self.expected)] == []
