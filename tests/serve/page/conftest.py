"""A browser, and the page that it shows."""

import threading

import pytest


@pytest.fixture(scope="session")
def browser():
    # Not at the top: selenium may be missing.
    from tests.serve.page.browser import start_browser

    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    from tests.serve.page.browser import Page

    page = Page(browser)
    page.resize()
    yield page
    page.check_console()


@pytest.fixture
def chat(page, front):
    page.open(front.url)
    return page


@pytest.fixture
def gate():
    """Answers can wait for it. It is open at the end of the test in any case."""
    gate = threading.Event()
    yield gate
    gate.set()
