"""The pages in a real browser, Debian's Chromium: by mouse, by keyboard alone, by screen reader."""

import re
import shutil

import pytest

from palto import cli, serve, web
from palto.data.sources.penguins import TABLE
from palto.train.run import Run

from .helpers import picture

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is missing (apt install chromium)"
)


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
        if said.type == "error" and "status of 422" not in said.text:
            problems.append(said.text)

    def opened(server, locale="en-GB"):
        contexts.append(browser.new_context(locale=locale))
        page = contexts[-1].new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.addresses[0])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def said(page, words):
    """Wait until a screen reader would say what begins so."""
    api.expect(page.get_by_role("status")).to_contain_text(words)


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.tagName")


def test_a_dropped_picture_shows_its_class(opened, server, tmp_path):
    picture(2, 77).save(tmp_path / "x.png")
    page = opened(server)
    page.evaluate(
        """bytes => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "x.png", {type: "image/png"}));
            document.dispatchEvent(new DragEvent("drop", {dataTransfer: files}));
        }""",
        list((tmp_path / "x.png").read_bytes()),
    )
    said(page, "red: ")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    page.set_input_files("#file", tmp_path / "bad.png")
    said(page, "no image")
    assert page.locator("#classes").is_hidden()


def test_a_picture_by_keyboard_and_screen_reader(opened, server, tmp_path):
    picture(1, 77).save(tmp_path / "x.png")
    page = opened(server)
    page.on("filechooser", lambda dialog: dialog.set_files(tmp_path / "x.png"))
    api.expect(page.get_by_role("main")).to_match_aria_snapshot(
        """
        - main:
          - heading "What does the picture show?" [level=1]
          - paragraph:
            - text: Choose a picture
            - button "Choose a picture"
            - text: or drop one here, or paste it
          - status
        """
    )
    assert page.get_by_label("Choose a picture").get_attribute("aria-describedby") == "hint"
    page.keyboard.press("Tab")
    assert focused(page) == "file"
    page.keyboard.press("Enter")
    said(page, "green: ")
    assert focused(page) == "file"  # ready for the next one
    api.expect(page.get_by_role("list", name="How likely each class is")).to_match_aria_snapshot(
        r"""
        - list "How likely each class is":
          - listitem: /green [\d.]+%/
          - listitem: /(red|blue) [\d.]+%/
          - listitem: /(red|blue) [\d.]+%/
        """
    )
    api.expect(page.get_by_role("img", name="The picture")).to_be_visible()


def test_a_row_by_keyboard_alone(opened, table_server):
    page = opened(table_server, "ru-RU")
    page.wait_for_selector("#column-0")
    assert page.get_attribute("html", "lang") == "ru"
    names = page.locator("#columns label").all_inner_texts()
    values = {"island": "T", "bill_length_mm": "39.1", "bill_depth_mm": "18,7", "sex": "m",
              "flipper_length_mm": "181", "body_mass_g": "3750", "year": ""}  # fmt: skip
    assert sorted(names) == sorted(values)
    for k, name in enumerate(names):
        page.keyboard.press("Tab")
        assert focused(page) == f"column-{k}"  # in the order in which they are read
        page.keyboard.type(values[name])
    page.keyboard.press("Enter")  # a form is sent from any of its fields
    said(page, "Adelie: ")
    page.keyboard.press("Tab")
    assert focused(page) == "BUTTON"
    assert page.get_by_role("button", name="Предсказать").is_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("2008")
    page.keyboard.press("Tab")
    with page.expect_request("**/predict") as asked:
        page.keyboard.press("Space")
    sent = asked.value.post_data_json
    assert sent == {"island": "Torgersen", "bill_length_mm": "39.1", "bill_depth_mm": "18.7",
                    "flipper_length_mm": "181", "body_mass_g": "3750", "sex": "male",
                    "year": "2008"}  # fmt: skip
    said(page, "Adelie: ")
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("20.08.1")
    page.keyboard.press("Enter")
    said(page, "row 1, column 'year': '20.08.1' is no number")


def test_a_row_by_screen_reader(opened, table_server):
    page = opened(table_server)
    page.wait_for_selector("#column-0")
    api.expect(page.get_by_role("main")).to_match_aria_snapshot(
        """
        - main:
          - 'heading "Prediction: species" [level=1]'
          - form "What is known":
            - paragraph: What is left empty counts as unknown. Grey numbers are means.
            - text: island
            - combobox "island":
              - option "unknown" [selected]
              - option "Biscoe"
              - option "Dream"
              - option "Torgersen"
            - text: bill_length_mm
            - textbox "bill_length_mm"
            - text: bill_depth_mm
            - textbox "bill_depth_mm"
            - text: flipper_length_mm
            - textbox "flipper_length_mm"
            - text: body_mass_g
            - textbox "body_mass_g"
            - text: sex
            - combobox "sex":
              - option "unknown" [selected]
              - option "female"
              - option "male"
            - text: year
            - textbox "year"
            - button "Predict"
          - status
        """
    )
    page.get_by_label("body_mass_g").fill("5,600")  # in English thousands, in Russian a fraction
    page.get_by_role("button").click()
    said(page, "row 1, column 'body_mass_g': '5,600' is no number")
    page.get_by_label("island").select_option("Biscoe")
    page.get_by_label("flipper_length_mm").fill("230")
    page.get_by_label("body_mass_g").fill("5600")
    page.get_by_role("button").click()
    said(page, "Gentoo: ")
    api.expect(page.get_by_role("list", name="How likely each class is")).to_contain_text("Adelie")


def test_a_number_is_said_in_its_unit_and_in_the_readers_way(opened, tmp_path):
    lines = [line for line in TABLE.read_text().splitlines() if "NA,NA,NA,NA" not in line]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    words = ["train", str(tmp_path / "table.csv"), "--target", "body_mass_g", "--epochs", "40"]
    words += ["--batch-size", "16", "--lr", "1e-2", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    predictor = Run.open(tmp_path / "run").predictor()
    row = dict.fromkeys(column.name for column in predictor.encoder.columns)
    inputs, _ = predictor.read(row | {"species": "Gentoo", "sex": "male"})
    grams = predictor(inputs[None])[0, 0]
    app = serve.application(Run.open(tmp_path / "run"), log=False)
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        page = opened(server, "ru-RU")
        page.get_by_label("species").select_option("Gentoo")
        page.get_by_label("sex").select_option("male")
        page.get_by_role("button").click()
        api.expect(page.get_by_role("status")).to_have_text(re.compile(r"^\d\s\d{3}(,\d+)?$"))
        said = re.sub(r"\s", "", page.get_by_role("status").inner_text()).replace(",", ".")
        assert abs(float(said) - grams) < 0.01
        assert page.locator("#classes").is_hidden()


def test_rows_on_a_phone_and_without_a_server(opened, browser, table_server):
    page = opened(table_server)
    page.set_viewport_size({"width": 320, "height": 640})
    page.wait_for_selector("#column-0")
    page.get_by_role("button").click()  # nothing is known
    page.wait_for_selector("#classes li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.route("**/predict", lambda route: route.fulfill(body="no JSON"))
    page.get_by_role("button").click()
    said(page, "The server does not answer.")
