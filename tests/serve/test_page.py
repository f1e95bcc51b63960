"""The web page: its files are all there, load nothing from elsewhere, and work in a browser."""

import re
import shutil

import pytest
from serving import running, until

from scumble.serve.keys import Keys
from scumble.serve.page import FILES
from scumble.serve.store import open_store


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


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens the page of a server, with settings that make answers quick; nothing may be written to the console."""
    said: list[str] = []
    contexts = []

    def open_at(url: str, settings=(("max_tokens", "8"), ("max_denoising_steps", "3"))):
        contexts.append(chromium.new_context())
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{url}/")
        page.evaluate("document.querySelector('#settings').open = true")
        for name, value in settings:
            page.fill(f"#settings [name={name}]", value)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert [line for line in said if not line.startswith("Failed to load resource")] == []


@pytest.mark.slow
def test_a_text_forms_in_a_real_browser(served, open_page):
    """Chromium draws passes, and the slider replays them."""
    page = open_page(served.url)
    page.fill("#write-prompt", "abc")
    page.press("#write-prompt", "Control+Enter")
    page.wait_for_selector("#write .replay:not([hidden])", timeout=30_000)
    frames = int(page.get_attribute("#write .replay input", "max"))
    assert frames >= 1
    page.evaluate(
        "s => { s.value = 0; s.dispatchEvent(new Event('input')) }", page.query_selector("#write .replay input")
    )
    assert page.inner_text("#write .replay output") == "canvas 1, pass 1"


@pytest.mark.slow
def test_every_tab_answers_to_the_keyboard_alone(served, open_page):
    page = open_page(served.url)
    page.focus("#tab-write")
    for key, shown in (("ArrowRight", "fill"), ("ArrowRight", "compare"), ("End", "server"), ("ArrowRight", "write"),
                       ("ArrowLeft", "server"), ("Home", "write"), ("ArrowRight", "fill")):  # fmt: skip
        page.keyboard.press(key)
        assert page.is_visible(f"#{shown}")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("the canvas is thick")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowLeft")
    assert page.inner_text("#fill-region") == "5 characters are selected."
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "fill-mend"
    page.keyboard.press("Enter")
    page.wait_for_selector("#fill .replay:not([hidden])", timeout=30_000)
    answer = page.inner_text("#fill .canvas")
    assert answer.startswith("the canvas is ")
    page.focus("#fill-take")
    page.keyboard.press("Enter")
    assert page.input_value("#fill-text") == answer
    for tab, ready in (("compare", "#compare [data-canvas=autoregressive] dd"), ("chat", "#chat-turns .assistant")):
        page.click(f"#tab-{tab}")
        page.fill(f"#{tab} textarea", "the canvas")
        page.press(f"#{tab} textarea", "Control+Enter")
        page.wait_for_selector(ready, timeout=30_000)
    page.click("#tab-server")
    page.wait_for_selector("#server-figures dd")
    assert page.is_hidden("#error")


@pytest.mark.slow
def test_what_goes_wrong_is_said_in_words(llm, tmp_path, open_page):
    key = Keys(open_store(tmp_path / "keys.db")).create("me", ["generate"])
    with running(llm, state=tmp_path, max_running=1, max_waiting=0) as one:
        page = open_page(one.url)
        page.wait_for_selector("#error:not([hidden])")
        assert "Enter one under Settings" in page.inner_text("#error")
        page.fill("#settings [name=key]", key)
        page.press("#settings [name=key]", "Tab")
        page.wait_for_selector("#error", state="hidden")
        assert "tiny" in page.inner_text("#model")
        page.click("#tab-server")
        page.wait_for_selector("#server-admin p")
        assert "scope admin" in page.inner_text("#server-admin")
        page.click("#tab-write")
        one.key = key
        long = {"prompt": "a", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        with one.client() as client, client.stream("POST", "/v1/completions", json=long):
            until(lambda: one.service.backend.slots.running == 1)
            page.press("#write-prompt", "Control+Enter")
            page.wait_for_selector("#error:not([hidden])")
            assert "the queue is full" in page.inner_text("#error")
    page.press("#write-prompt", "Control+Enter")
    page.wait_for_function("document.querySelector('#error').textContent.includes('cannot be reached')")
    assert page.is_enabled("#write [type=submit]")
