"""The page in a real browser: Debian's Chromium."""

import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)"),
    pytest.mark.skipif(sys.platform == "win32", reason="the server is killed by signals"),
]

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def photos(tmp_path):
    """18 red and blue images, 4 of each known."""
    rng = np.random.default_rng(0)
    for k in range(18):
        name = list(COLOURS)[k % 2]
        folder = tmp_path / "photos" / (name if k < 8 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(COLOURS[name], 10, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02}.png")
    return tmp_path / "photos"


class Program:
    """`palto label` as a process of its own."""

    def __init__(self, folder, *words, port=0):
        command = [sys.executable, "-m", "palto.cli", "label", str(folder), "--classes", "red,blue"]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if match := re.search(r"http://[^:]+:(\d+)/\S*", line):
                self.address, self.port = match[0], int(match[1])
                return
        raise AssertionError("".join(self.said))

    def end(self, how=signal.SIGINT):
        self.process.send_signal(how)
        rest, _ = self.process.communicate(timeout=20)
        return self.process.returncode, rest

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def colour_of(page, name):
    """Which tiles show the colour, by their pixels: an annotator with eyes."""
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    reds = page.evaluate(
        """[...document.querySelectorAll('.tile img')].map(i => {
             const c = new OffscreenCanvas(1, 1).getContext('2d');
             c.drawImage(i, 0, 0, 1, 1);
             const [r, , b] = c.getImageData(0, 0, 1, 1).data;
             return r > b; })"""
    )
    return [red == (name == "red") for red in reds]


def wait(page):
    """Until nothing is under way."""
    page.wait_for_selector('#tiles[aria-busy="false"]', state="attached")


def answer_by_keyboard(page):
    name = page.inner_text("#question").rsplit(": ", 1)[1]
    for k, shows in enumerate(colour_of(page, name)):
        if shows:
            page.keyboard.press(str(k + 1))
    page.keyboard.press("Enter")
    wait(page)


def answers_in(folder):
    from palto.label.store import DATABASE, Store

    store = Store(folder / DATABASE)
    try:
        return store.answers(), store.known_array()
    finally:
        store.close()


def test_labelling_by_keyboard_survives_a_kill(browser, photos):
    errors = []
    with Program(photos) as program:
        page = browser.new_page(locale="en-GB")
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text))
        page.goto(program.address)
        wait(page)
        assert page.locator(".tile").count() == 9
        assert "Select all images with" in page.inner_text("#question")
        for _ in range(2):
            answer_by_keyboard(page)
            assert page.inner_text("#message") == "Thank you."
        before, _ = answers_in(photos)
        assert len(before.image) == 18
        program.end(signal.SIGKILL)
        with Program(photos, port=program.port) as again:
            page.reload()
            wait(page)
            while page.locator(".tile").count():
                answer_by_keyboard(page)
            assert "Nothing is left" in page.inner_text("#question")
            code, rest = again.end()
        assert code == 0 and "Traceback" not in rest
    assert not [text for text in errors if "net::ERR" not in text]  # of the time without a server
    after, known = answers_in(photos)
    for column, kept in zip(vars(after).values(), vars(before).values(), strict=True):
        assert (column[: len(kept)] == kept).all()
    from palto.label import dawid_skene

    labels = dawid_skene(after, 18, 2, known=known).labels
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    truth = {name: int(name.rsplit("/")[-1][:2]) % 2 for name in names}
    from palto.label.store import DATABASE, Store

    store = Store(photos / DATABASE)
    assert [truth[name] for name in store.images().values()] == labels.tolist()
    store.close()


def test_a_phone_in_russian_and_two_tabs(browser, photos):
    with Program(photos, "--token", "--names", "красное,синее") as program:
        phone = browser.new_context(
            viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, locale="ru-RU"
        )
        page, second = phone.new_page(), phone.new_page()
        for tab in (page, second):
            tab.goto(program.address)
            wait(tab)
        assert page.get_attribute("html", "lang") == "ru"
        assert "Выберите все изображения" in page.inner_text("#question")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        labels = page.locator(".tile").evaluate_all("e => e.map(x => x.ariaLabel)")
        assert labels == [f"Изображение {k}" for k in range(1, 10)]
        box = page.locator(".tile").first.bounding_box()
        assert box["width"] >= 90 and box["height"] >= 90  # room for a finger
        for tab in (second, page):  # the later tab first: neither disturbs the other
            tab.bring_to_front()  # a tab behind another one is drawn slowly
            name = tab.inner_text("#question").rsplit(": ", 1)[1]
            for k, shows in enumerate(colour_of(tab, "red" if name == "красное" else "blue")):
                if shows:
                    tab.locator(".tile").nth(k).tap()
            tab.locator("#send").tap()
            wait(tab)
            assert tab.inner_text("#message") == "Спасибо."
        page.get_by_role("link", name="English").tap()
        wait(page)
        assert page.get_attribute("html", "lang") == "en"
        page.goto(program.address)
        wait(page)
        assert page.get_attribute("html", "lang") == "en"  # it is remembered
        phone.close()
    assert len(answers_in(photos)[0].image) == 18


def test_naming_by_keyboard(browser, photos):
    shutil.rmtree(photos / "red")
    with Program(photos, "--mode", "teach") as program:
        page = browser.new_page()
        page.goto(program.address)
        wait(page)
        for _ in range(3):
            key = "1" if colour_of(page, "red")[0] else "2"
            page.keyboard.press(key)
            wait(page)
        page.close()
    _, known = answers_in(photos)
    assert (known >= 0).sum() == 4 + 3
