"""The page in a Chromium: against a stand-in that says what a test wants, and against the server."""

import shutil
from contextlib import contextmanager

import pytest
from helpers import tiny
from pages import FLAGS, StandIn, item, items
from serving import serving

from pico import generate
from pico.base.symbols import visible
from pico.data.chat import lay_out_question

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # Chromium takes seconds to start
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
ANSWER = ".answer:not(.growing)"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH")
    from playwright.sync_api import sync_playwright

    launch = dict(executable_path=CHROMIUM, args=FLAGS, timeout=120_000)
    with sync_playwright() as playwright, playwright.chromium.launch(**launch) as browser:
        yield browser


@contextmanager
def opened(browser, address: str, before: str = "", **options):
    """A fresh page at an address, after a script. What it complains of in its console is an error of the test, too."""
    context = browser.new_context(**options)
    context.add_init_script(before)
    page, complaints = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Security" in said.text else None)
    page.goto(address)
    page.locator(".empty").wait_for()
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def server():
    with StandIn() as server:
        yield server


@pytest.fixture
def page(browser, server):
    with opened(browser, server.address) as page:
        yield page


def say(page, text: str) -> None:
    page.locator("#input").fill(text)
    page.locator("#input").press("Enter")


def boxes(page) -> list[dict]:
    return [answer.bounding_box() for answer in page.locator(".answer").all()]


def texts(page) -> list[str]:
    return page.locator(".text").all_inner_texts()


def test_typed_streamed_stopped_and_still_there_after_a_reload(page, server):
    server.answers = [[*items(b"Once upon "), None, *items(b"a time.")], [*items(b"Half"), None, *items(b" more")]]
    page.locator("#input").press_sequentially("A story")
    page.locator("#input").press("Shift+Enter")
    page.locator("#input").press_sequentially("please")
    page.locator("#input").press("Enter")
    page.locator(".growing i").nth(9).wait_for()
    assert texts(page) == ["Once upon "]
    server.go.set()
    page.locator(ANSWER).wait_for()
    assert texts(page) == ["Once upon a time."]
    assert "17 bytes · 35 % routed · " in page.locator(".about").inner_text()

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_text("Copy", exact=True).click()
    page.get_by_text("Copied", exact=True).wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "Once upon a time."

    say(page, "Another")
    page.locator(".growing i").nth(3).wait_for()
    page.keyboard.press("Escape")
    page.locator(ANSWER).nth(1).wait_for()
    assert server.left.wait(60)
    assert "stopped" in page.locator(".about").nth(1).inner_text()
    first, second = (asked["messages"] for asked in server.asked)
    assert first == [{"role": "user", "content": "A story\nplease"}]
    assert [turn["content"] for turn in second] == ["A story\nplease", "Once upon a time.", "Another"]

    before = page.locator("#log").inner_html()
    page.reload()
    page.locator(ANSWER).nth(1).wait_for()
    assert texts(page) == ["Once upon a time.", "Half"] and page.locator("#log").inner_html() == before

    server.answers = [items(b"Again.")]
    page.get_by_text("Again", exact=True).click()
    page.locator(f"{ANSWER} .text", has_text="Again.").wait_for()
    assert server.asked[-1]["messages"] == second
    page.get_by_text("Edit", exact=True).click()
    assert page.locator("#input").input_value() == "Another"
    page.locator("#new").click()
    assert texts(page) == []
    page.get_by_text("Undo").click()
    assert texts(page) == ["Once upon a time."]


def test_bytes_become_characters_and_nothing_else(page, server):
    """A character in several pieces, markup, control characters, bytes that are no text: marked, and with numbers."""
    euro, markup = "€".encode(), b"<img src=x onerror=document.title='bad'>"
    said = [item(euro[:1]), item(euro[1:2], routed=True, weight=0.9, surprise=3.0), item(euro[2:], surprise=None)]
    said += [item(bytes([byte])) for byte in markup]
    said += [item(b"\x1b"), item(b"\xff"), item(b"\n"), item("e\u0301\u202e".encode()), item(euro[:2])]
    server.answers = [said]
    say(page, "<b>who</b>")
    page.locator(ANSWER).wait_for()
    assert texts(page) == ["€" + markup.decode() + "␛�\ne\u0301␦�"]
    assert page.locator(".said").inner_text() == "<b>who</b>"
    assert page.locator("#log img, #log b").count() == 0 and page.title() == "tinystories · Pico"
    first, second = page.locator(".text i").nth(0), page.locator(".text i").nth(1)
    assert [each.evaluate("e => [e.className, e.style.getPropertyValue('--s')]") for each in (first, second)] == [
        ["r", "0.50"],
        ["", "0.13"],
    ]
    first.hover()
    assert page.locator("#tip").inner_text().splitlines() == [
        "bytes 0xe2 0x82 0xac",
        "4.00 bits of surprise: a chance of 6.3 %",
        "through the latent blocks, router weight 0.90",
    ]


def test_one_answer_with_and_without_latent_blocks(browser, server):
    server.by_latent = {False: items(b"Plain."), True: items(b"Deep.")}
    with opened(browser, server.address, viewport={"width": 1200, "height": 800}) as page:
        page.locator("#compare").check()
        say(page, "Both")
        page.locator(ANSWER).nth(1).wait_for()
        assert page.locator(".two h2").all_inner_texts() == ["with latent blocks", "without latent blocks"]
        assert texts(page) == ["Deep.", "Plain."]
        left, right = boxes(page)
        assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
        page.set_viewport_size({"width": 360, "height": 700})
        left, right = boxes(page)
        assert left["x"] == right["x"] and page.evaluate("document.documentElement.scrollWidth") == 360
        one, other = server.asked
        latent = [asked["pico"].pop("disable_latent") for asked in (one, other)]
        assert sorted(latent) == [False, True] and one == other
        assert not page.locator("#compare").is_checked()

        say(page, "Now one")
        page.locator(ANSWER).nth(2).wait_for()
        assert server.asked[-1]["messages"][1] == {"role": "assistant", "content": "Deep."}
        page.get_by_role("button", name="Without latent blocks").click()
        page.locator(ANSWER).nth(3).wait_for()
        assert texts(page)[2:] == ["Deep.", "Plain."]


def test_a_text_goes_on_with_the_settings_asked_for(browser, server):
    phone = dict(viewport={"width": 360, "height": 700}, color_scheme="dark")
    with opened(browser, server.address, **phone) as page:
        page.get_by_role("tab", name="Continue").click()
        page.locator("#open").click()
        page.locator("[name=temperature]").fill("0.3")
        page.locator("[name=repetition_penalty]").fill("1.5")
        page.locator("[name=max_tokens]").fill("99")
        page.locator("[name=seed]").fill("7")
        page.keyboard.press("Escape")
        server.answers = [items(b" upon \xe2\x82"), [item(b"\xac"), *items(b" time")]]
        say(page, "Once")
        page.locator(ANSWER).wait_for()
        assert texts(page) == ["Once upon �"]
        page.get_by_text("Go on").click()
        page.locator(f"{ANSWER} .text", has_text="time").wait_for()
        assert texts(page) == ["Once upon € time"]
        first, second = server.asked
        wanted = {"path": "/v1/completions", "stream": True, "temperature": 0.3, "max_tokens": 99, "seed": 7}
        assert {key: first[key] for key in wanted} == wanted and first["prompt"] == "Once"
        assert first["pico"] == {"trace": True, "disable_latent": False, "min_p": 0, "repetition_penalty": 1.5}
        assert second["prompt"] == list(b"Once upon \xe2\x82") and second["seed"] != 7
        server.answers = [items(b" more")]
        page.get_by_text("Again", exact=True).click()
        page.locator(f"{ANSWER} .text", has_text="more").wait_for()
        assert (server.asked[2]["prompt"], server.asked[2]["seed"]) == ("Once", 8)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
        page.locator("#open").click()
        page.locator("[name=theme]").select_option("light")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_what_goes_wrong_is_one_line(browser):
    with StandIn(key="sesame", chat=False) as server, opened_with_key(browser, server) as page:
        assert page.get_by_role("tab", name="Chat").is_disabled()
        server.answers = ["max_tokens: 3 bytes too many", [*items(b"Half"), {"error": {"message": "broken off"}}]]
        say(page, "One")
        page.locator("#error", has_text="max_tokens: 3 bytes too many").wait_for()
        say(page, "Two")
        page.locator("#error", has_text="broken off").wait_for()
        assert texts(page) == ["One", "TwoHalf"]


def test_a_model_of_tokens_has_no_routes(browser):
    with StandIn(unit="token", routes=False, context=64) as server, opened(browser, server.address) as page:
        server.answers = [[item(b"Hello wor"), item(b"ld \xe2\x82"), item(b"\xac")]]
        say(page, "Hi")
        page.locator(ANSWER).wait_for()
        assert texts(page) == ["Hello world €"] and page.locator(".text i").count() == 3
        assert page.locator(".routes:visible").count() == 0
        about = page.locator(".about").inner_text()
        assert "15 bytes · 0.20 bits a byte" in about and "latent" not in about


@pytest.mark.parametrize("kept", ["localStorage.pico = '{}'", "localStorage.x = 'x'.repeat(5242000)"])
def test_what_the_browser_keeps_may_be_broken_or_full(browser, server, kept):
    server.answers = [items(b"x" * 999)]
    with opened(browser, server.address, kept) as page:
        say(page, "Hi")
        page.locator(ANSWER).wait_for()
        assert texts(page) == ["x" * 999]


@contextmanager
def opened_with_key(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(server.address)
    page.locator("#error", has_text="asks for an API key").wait_for()
    page.locator("#key").fill("please")
    page.locator("#key").press("Enter")
    page.locator("#error", has_text="not the server's key").wait_for()
    page.locator("#key").fill("sesame")
    page.locator("#key").press("Enter")
    page.locator(".empty").wait_for()
    assert page.locator("#ask").is_hidden() and page.locator("#error").inner_text() == ""
    yield page
    context.close()


def test_what_the_server_says_is_what_stands_there(browser):
    """A tiny model writes any bytes: the page shows what a terminal would, with and without latent blocks."""
    model = tiny()
    ids, _ = lay_out_question([("user", b"Hello")], model.alphabet)
    ends = frozenset([model.alphabet.eos, model.alphabet.control["end-of-turn"]])
    settings = dict(temperature=0, max_bytes=300, stop_symbols=ends)
    with serving(model) as served, opened(browser, served.address) as page:
        page.locator("#open").click()
        page.locator("[name=temperature]").fill("0")
        page.locator("[name=max_tokens]").fill("300")
        page.keyboard.press("Escape")
        page.locator("#compare").check()
        say(page, "Hello")
        page.locator(ANSWER).nth(1).wait_for()
        for disable_latent, shown in zip((False, True), page.locator(".text").all(), strict=True):
            steps = list(generate(model, ids, disable_latent=disable_latent, **settings))
            written = b"".join(step.bytes for step in steps).decode(errors="replace")
            assert shown.text_content() == visible(written)
        page.get_by_role("tab", name="Continue").click()
        say(page, "Once")
        page.locator(ANSWER).wait_for()
        assert "bits a byte" in page.locator(".about").inner_text()
