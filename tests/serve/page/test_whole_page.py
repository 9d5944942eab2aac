"""What holds for the whole page: its files, the API key, harmful text, small screens and contrast."""

import re

import httpx2
import pytest

pytest.importorskip("selenium", reason="the page is not tested, since selenium is not installed")

from selenium.webdriver.common.keys import Keys

from spacy_llmner.serve.static_page import PAGE
from tests.serve.helpers import serving
from tests.serve.page.helpers import HARMFUL, TEXT, answer, find


def test_files(server):
    """All are served, with headers that allow nothing else, and refer to nothing outside."""
    for path in PAGE.iterdir():
        reply = httpx2.get(f"{server.url}/{path.name}")
        assert reply.status_code == 200 and reply.content == path.read_bytes()
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "//" not in re.sub(
            r"(^|\s)//.*|http://www.w3.org/2000/svg", "", path.read_text("utf8"), flags=re.M
        )
    assert "text/html" in httpx2.get(server.url).headers["content-type"]
    assert httpx2.get(f"{server.url}/missing.js").status_code == 404


def test_api_key(page, nlp):
    page.expected = ["status of 401"]
    with serving(nlp, api_key="kéy") as running:
        page.open(running.url, "#key-form")
        assert not page.is_visible("#settings, #chat, #text, #notice")
        page.one("#key").send_keys("wrong", Keys.ENTER)
        page.wait_for("#notice")
        assert "LLMNER160" in page.texts("#notice")[0]
        page.one("#key").send_keys("kéy", Keys.ENTER)
        page.wait_for("#settings")
        assert not page.is_visible("#key-form, #notice")
        page.click("#text-tab")
        find(page, "Mira")
        assert page.is_visible("#result")
        assert page.run("return localStorage.length + sessionStorage.length") == 0
        assert "kéy" not in page.driver.page_source and not page.driver.get_cookies()
        page.open(running.url, "#key-form")


def test_harmful_text(chat, scripted):
    """Whatever comes from users and LLMs is shown as text."""
    answer(scripted, HARMFUL)
    chat.ask(HARMFUL)
    chat.wait_until(lambda: chat.answers() == [HARMFUL])
    chat.wait_for_the_end()
    chat.click("#text-tab")
    find(chat, HARMFUL)
    assert not chat.all("img, b") and chat.driver.title == "spacy-llmner"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_screens_and_contrast(chat, scripted, scheme):
    chat.resize(380, 740, scheme)
    answer(scripted, f"{TEXT} {'x' * 200}")
    chat.ask("y" * 200)
    chat.wait_until(lambda: chat.all(".entity.final"))
    chat.wait_for_the_end()
    assert fits(chat)
    chat.click("#text-tab")
    find(chat, f"{TEXT} {'x' * 200}")
    assert fits(chat)
    # Every pair of colours of text and background.
    ratios = chat.run(CONTRASTS)
    assert len(ratios) > 40 and min(ratios.values()) >= 4.5, ratios


def fits(page):
    """RETURNS (bool): Whether nothing is wider than the screen."""
    return page.run("""
        const wide = (element) => element.scrollWidth > element.clientWidth;
        return ![document.documentElement, ...document.querySelectorAll("#log, #text, #marked")]
          .some(wide);
    """)


CONTRASTS = """
const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const luminance = (color) => {
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255).map(
    (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const probe = document.body.appendChild(document.createElement("span"));
const value = (name) => {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
};
const ratios = {};
const compare = (ink, back) => {
  const [low, high] = [luminance(value(ink)), luminance(value(back))].sort((a, b) => a - b);
  ratios[`${probe.className} ${ink} on ${back}`] = (high + 0.05) / (low + 0.05);
};
for (const back of ["--page", "--card"]) for (const ink of ["--ink", "--soft"]) compare(ink, back);
compare("--ink", "--user");
compare("--error", "--error-back");
compare("--on-accent", "--accent");
compare("--page", "--ink");
for (let i = 0; i < 10; i += 1) {
  probe.className = `color-${i}`;
  for (const back of ["--card", "--fill"]) compare("--strong", back);
  compare("--ink", "--fill");
  compare("--ink", "--card");
}
probe.remove();
return ratios;
"""
