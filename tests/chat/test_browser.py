"""The page in a real browser, Debian's Chromium: by keyboard, in Russian, on a phone."""

import re
import shutil
import time

import pytest

from palto import web
from palto.chat import server as chat
from palto.chat.generate import Answer, Options, Reader, fit
from palto.chat.models import ChatModel

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is missing (apt install chromium)"
)
OPTIONS = Options(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def named(found):
    """The model with a name that is a piece of a page."""
    return ChatModel('<b onclick="x">Tiny</b>', found.model, found.tokenizer, found.context)


@pytest.fixture(scope="module")
def slow(named):
    """What reads so slowly that one can press a button meanwhile."""
    reader = Reader(named, 200)
    read = reader.read

    def slowly(slot, tokens):
        time.sleep(0.05)
        return read(slot, tokens)

    reader.read = slowly
    return reader


@pytest.fixture(scope="module")
def server(named, slow):
    app = chat.application(named, slow, OPTIONS)
    with web.Server(app, web.ServerOptions(port=0)).in_background() as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """Opens a server's page, in a language; at the end nothing may be wrong in the console."""
    contexts, problems = [], []

    def note(said):
        if said.type == "error" and not re.search("status of (422|502)", said.text):
            problems.append(said.text)

    def opened(server, locale="en-GB", **options):
        contexts.append(browser.new_context(locale=locale, **options))
        page = contexts[-1].new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.addresses[0])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def wanted(found, reader):
    """``wanted(turns)``: the answer to a conversation."""

    def wanted(*texts):
        turns = [
            {"role": "assistant" if number % 2 else "user", "content": text}
            for number, text in enumerate(texts)
        ]
        prompt = fit(found, turns, 200, 20)
        answer = Answer(found, reader, reader.new_slot(), prompt.tokens, OPTIONS)
        list(answer)
        return answer.text

    return wanted


def answers(page):
    return page.locator("#conversation .assistant span")


def said(page, words):
    """Wait until a screen reader would say what begins so."""
    api.expect(page.get_by_role("status")).to_contain_text(words)


def test_a_conversation_by_keyboard_alone(opened, server, wanted):
    page = opened(server)
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("<b>Hi</b> <img src=x onerror=alert(1)>")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    question = "<b>Hi</b> <img src=x onerror=alert(1)>\nthere"
    first = wanted(question)
    api.expect(page.locator("#conversation .user span")).to_have_text(question)
    said(page, re.compile(r"^(The answer is complete|Cut off)"))
    assert answers(page).text_content() == first
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("and?")
    page.keyboard.press("Enter")
    api.expect(answers(page)).to_have_count(2)
    said(page, re.compile(r"^(The answer is complete|Cut off)"))
    assert answers(page).nth(1).text_content() == wanted(question, first, "and?")
    assert page.locator("#conversation img").count() == 0
    assert page.get_by_role("heading", level=1).inner_text() == '<b onclick="x">Tiny</b>'
    page.get_by_role("button", name="New conversation").press("Enter")
    assert page.locator("#conversation li").count() == 0
    page.keyboard.press("Enter")  # nothing is sent
    assert page.locator("#conversation li").count() == 0


def test_an_answer_is_stopped(opened, server):
    page = opened(server)
    page.get_by_text("Settings").click()
    page.get_by_label("The longest answer").fill("150")
    page.get_by_label("Temperature").fill("0")  # no end by chance
    for way in ("key", "button"):
        page.get_by_label("Your message").fill("Hello")
        page.keyboard.press("Enter") if way == "key" else page.get_by_role(
            "button", name="Send"
        ).click()
        api.expect(answers(page).last).not_to_be_empty()
        assert page.get_by_role("button", name="Send").is_hidden()
        if way == "key":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop").click()
        said(page, "Stopped.")
        text = answers(page).last.text_content()
        assert text
        page.wait_for_timeout(100)
        assert answers(page).last.text_content() == text
    api.expect(answers(page)).to_have_count(2)


def test_settings_are_sent(opened, server):
    page = opened(server)
    page.get_by_text("Settings").click()
    page.get_by_label("What the model is to be").fill("Be brief.")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Your message").fill("Hello")
    with page.expect_request("**/completions") as asked:
        page.get_by_role("button", name="Send").click()
    assert asked.value.post_data_json == {
        "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
        ],
        "stream": True, "temperature": 0.5, "max_tokens": 20, "seed": 7,
    }  # fmt: skip
    said(page, re.compile("complete|Cut off"))
    first = answers(page).text_content()
    page.get_by_role("button", name="Another answer").click()
    said(page, re.compile("complete|Cut off"))
    api.expect(answers(page)).to_have_count(1)
    assert answers(page).text_content() == first  # of the same seed


def test_what_goes_wrong_is_said_and_nothing_is_lost(opened, server):
    page = opened(server)
    long = "word " * 2000
    page.get_by_label("Your message").fill(long)
    page.get_by_role("button", name="Send").click()
    said(page, "too long")
    assert page.get_by_label("Your message").input_value() == long.strip()
    assert page.locator("#conversation li").count() == 0
    page.get_by_label("Your message").fill("Hello")
    page.route("**/completions", lambda route: route.fulfill(status=502, body="no JSON"))
    page.get_by_role("button", name="Send").click()
    said(page, "The server does not answer.")
    page.unroute("**/completions")
    page.get_by_role("button", name="Send").click()
    said(page, re.compile("complete|Cut off"))


def test_in_russian_on_a_phone(opened, server):
    page = opened(server, "ru-RU", viewport={"width": 320, "height": 640})
    assert page.get_attribute("html", "lang") == "ru"
    page.get_by_label("Ваше сообщение").fill("Привет" + "!" * 60)
    page.get_by_role("button", name="Отправить").click()
    said(page, re.compile("Ответ готов|Оборвано"))
    page.get_by_text("Настройки").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for button in page.get_by_role("button").all():
        assert button.bounding_box()["height"] >= 40


def test_by_screen_reader(opened, server):
    page = opened(server)
    api.expect(page.get_by_role("main")).to_match_aria_snapshot(
        """
        - main:
          - log "The conversation"
          - status
          - text: Your message
          - textbox "Your message"
          - button "Send"
          - paragraph: Enter sends, Shift+Enter begins a new line, Esc stops the answer.
          - group: Settings
        """
    )


def test_two_people_at_once(opened, server, wanted):
    questions = ["I am the first", "And I the second one"]
    pages = [opened(server) for _ in questions]
    for page, question in zip(pages, questions, strict=True):
        page.get_by_label("Your message").fill(question)
        page.get_by_role("button", name="Send").click()
    for page, question in zip(pages, questions, strict=True):
        said(page, re.compile("complete|Cut off"))
        assert answers(page).text_content() == wanted(question)
