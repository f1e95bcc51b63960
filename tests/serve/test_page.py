"""The web page: its files are all there, load nothing from elsewhere, and work in a browser."""

import re
import shutil

import pytest

from scumble.serve.page import FILES


def test_the_page_and_its_files_need_no_key_and_forbid_everything_foreign(http):
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    for name in re.findall(r'(?:href|src)="web/([^"]+)"', page.text):
        assert http.get(f"/web/{name}").status_code == 200


def test_modules_import_only_what_is_served():
    for name, content in FILES.items():
        for module in re.findall(rb'from "\./([^"]+)"', content):
            assert module.decode() in FILES, name


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_names_another_host(name):
    addresses = re.findall(rb"https?://[^\s\"'<)]+", FILES[name])
    assert set(addresses) <= {b"http://www.w3.org/2000/svg"}, "only the name of SVG's language"


@pytest.mark.parametrize(
    "name", ["../page.py", "..%2fpage.py", "index.html%00", "nothing.js", "%2e%2e/%2e%2e/pyproject.toml"]
)
def test_a_name_never_becomes_a_path(http, name):
    assert http.get(f"/web/{name}").status_code == 404


def test_every_tab_has_its_panel_and_every_field_its_label():
    page = FILES["index.html"].decode()
    panels = set(re.findall(r'role="tabpanel" aria-labelledby="([^"]+)"', page))
    assert panels == set(re.findall(r'role="tab" id="([^"]+)"', page))
    for field in re.findall(r'<textarea id="([^"]+)"', page):
        assert f'<label for="{field}">' in page


@pytest.mark.slow
def test_a_text_forms_in_a_real_browser(served):
    """Chromium draws passes, the slider replays them, and nothing is written to the console."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{served.url}/")
        page.click("#settings summary")
        page.fill("#settings [name=max_tokens]", "8")
        page.fill("#settings [name=max_denoising_steps]", "3")
        page.fill("#write-prompt", "abc")
        page.press("#write-prompt", "Control+Enter")
        page.wait_for_selector("#write .replay:not([hidden])", timeout=30_000)
        frames = int(page.get_attribute("#write .replay input", "max"))
        assert frames >= 1
        page.evaluate(
            "s => { s.value = 0; s.dispatchEvent(new Event('input')) }", page.query_selector("#write .replay input")
        )
        assert page.inner_text("#write .replay output") == "canvas 1, pass 1"
        page.click("#tab-write")
        page.keyboard.press("ArrowRight")
        assert page.is_visible("#fill-text")
        assert page.is_hidden("#write-prompt")
        browser.close()
    assert said == []
