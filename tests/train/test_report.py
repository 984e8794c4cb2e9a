"""The report: numbers, pictures, hostile names, partial data, writes that fail."""

import base64
import builtins
import io
import math
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from palto.tensor.dtypes import bfloat16
from palto.train import report as module
from palto.train.report import Mistake, Report

HOSTILE = "<script>alert('1')</script>&\"\ud800\0$\\frac{"
VOID = {"img", "input", "meta"}


class Page(HTMLParser):
    """A page's texts, elements and attributes; refuses what is not balanced."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def pictures():
    pytest.importorskip("matplotlib.figure", reason="pip install 'palto[plot]' to test pictures")


@pytest.fixture
def no_matplotlib(monkeypatch):
    honest = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] in ("matplotlib", "PIL"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return honest(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("matplotlib", "PIL"):
            monkeypatch.delitem(sys.modules, name)


def history(count=5):
    return [
        {
            "epoch": i + 1,
            "step": 100 * (i + 1),
            "seconds": 12.5 * (i + 1),
            "train_loss": 2.0 / (i + 1),
            "validation_loss": 1.5 / (i + 1) + 0.1,
            "accuracy": 0.9 - 0.4 / (i + 1),
            "top5": 0.99,
            "lr": 1e-3 * (1 - i / count),
        }
        for i in range(count)
    ]


def mistakes(count, shape=(28, 28, 1)):
    rng = np.random.default_rng(0)
    return [Mistake(rng.random(shape, np.float32), 0, 1, 0.987, 0.0123) for _ in range(count)]


def full(classes=10, **changes):
    rng = np.random.default_rng(0)
    names = classes if isinstance(classes, tuple) else [f"kind {k}" for k in range(classes)]
    confusion = rng.integers(0, 30, (len(names),) * 2) + 400 * np.eye(len(names), dtype=int)
    given = {
        "title": "lenet on fashion-mnist",
        "history": history(),
        "classes": names,
        "confusion": confusion,
        "filters": rng.normal(size=(5, 5, 1, 6)),
        "mistakes": mistakes(24),
        "metrics": {"accuracy": 0.8765, "loss": 0.34567, "images_per_second": 4321.9},
        "configuration": {"model": "lenet", "optimizer": {"name": "Adam", "lr": 0.003}},
        "command": "palto train --model lenet --seed 7",
        "versions": {"palto": "0.1.0", "cpu": "a small one"},
        "model_summary": "conv1   Conv2d   (1, 28, 28, 6)   156",
        "notes": ["stopped early at epoch 7"],
    }
    return Report(**{**given, **changes})


# What is on the page


def test_everything_is_on_the_page():
    page = Page(full().html())
    for text in (
        "lenet on fashion-mnist", "stopped early at epoch 7",
        "accuracy 87.65%", "loss 0.3457", "images per second 4,322", "time 62.5 s", "epochs 5",
        "palto train --model lenet --seed 7", "optimizer.lr 0.003", "cpu a small one",
        "time for each epoch 12.5 s", "conv1 Conv2d", "kind 3",
    ):  # fmt: skip
        assert text in page.text


def test_pictures(pictures):
    page = Page(full().html())
    labels = {svg["aria-label"] for svg in page.all("svg")}
    assert {"loss over epoch", "loss over epoch, logarithmic", "learning rate over step"} <= labels
    assert "best 0.4 at epoch 5" in page.text and "best 82.00% at epoch 5" in page.text
    assert len(page.all("img")) == 24 + 1
    assert page.text.count("guess kind 1 98.7% truth kind 0 1.2%") == 24


def test_images_are_what_was_given(pictures):
    from PIL import Image

    image = np.zeros((4, 6, 3), np.float32)
    image[1, 2] = [1.0, 0.5, 7.0]
    page = Page(full(filters=None, mistakes=[Mistake(image, 0, 1, 0.5, 0.1)]).html())
    (attributes,) = page.all("img")
    packed = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(packed)) as decoded:
        pixels = np.asarray(decoded)
    assert pixels.shape == (4, 6, 3) and pixels.sum() == 255 + 128 + 255
    assert pixels[1, 2].tolist() == [255, 128, 255]
    assert attributes["alt"] == "kind 0, taken for kind 1"


def test_confusion_counts_recall_and_precision():
    confusion = [[8, 2], [3, 7]]
    page = Page(Report("two", [], ("cat", "dog"), np.array(confusion)).html())
    assert "15 of 20 examples right (75.00%)" in page.text
    titles = {cell["title"] for cell in page.all("td") if "title" in cell}
    assert "cat, taken for dog: 20.0%" in titles and "dog, taken for dog: 70.0%" in titles
    assert "dog 10 70.0% 77.8% cat 10 80.0% 72.7%" in page.text  # recall 7/10, precision 7/9
    assert "truth guess examples share of truth dog cat 3 30.0% cat dog 2 20.0%" in page.text


def test_many_classes_show_pairs_and_not_counts(pictures):
    confusion = np.eye(100, dtype=int) * 50
    confusion[7, 93] = 41
    page = Page(full(classes=100, confusion=confusion, mistakes=[]).html())
    assert "kind 7 kind 93 41 45.1%" in page.text
    assert "confusion matrix of 100 classes" in {image["alt"] for image in page.all("img")}
    assert "The other 80 classes" in page.text
    assert not [cell for cell in page.all("td") if cell.get("class") == "right"]


def test_the_best_is_that_of_validation_and_knows_the_direction(pictures):
    entries = [
        {"epoch": e, "train_loss": t, "validation_loss": v, "error": v, "grad_norm": v}
        for e, t, v in ((1, 3.0, 2.0), (2, 2.0, 1.0), (3, 0.5, 1.25))
    ]
    text = Page(Report("x", entries).html()).text
    assert text.count("best 1 at epoch 2") == 2  # the loss and the error, not the norm
    assert text.count("best") == 2


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("accuracy", 0.98765, "98.77%"),
        ("top5", 1.0, "100.00%"),
        ("accuracy", 98.5, "98.5"),
        ("loss", 0.123456, "0.1235"),
        ("parameters", 61706, "61,706"),
        ("images_per_second", 1234.56, "1,235"),
        ("seconds", 0.5, "0.5 s"),
        ("seconds", 125.2, "2 min 5 s"),
        ("seconds", 3600 * 25 + 61, "25 h 1 min"),
        ("loss", math.nan, "nan"),
        ("seconds", math.inf, "inf s"),
        ("loss", 1e300, "1e+300"),
        ("accuracy", np.float32(0.5), "50.00%"),
        ("loss", None, "nan"),
    ],
)
def test_numbers_as_people_write_them(key, value, text):
    page = Page(Report("x", [], metrics={key: value}).html())
    (shown,) = re.findall(r"<dd>(.*?)</dd>", Report("x", [], metrics={key: value}).html())
    assert shown == text and text in page.text


# What must not be on it


def test_hostile_texts_are_escaped(tmp_path):
    bad = HOSTILE
    entries = [{"epoch": i, "loss": 10.0**-i, bad: i} for i in range(3)]
    page = full(
        title=bad, history=entries, classes=(bad,) * 10, metrics={bad: 1}, command=bad,
        configuration={bad: {bad: bad}}, versions={bad: bad}, model_summary=bad, notes=[bad],
    )  # fmt: skip
    html = page.html()
    assert not Page(html).all("script")
    assert "<script" not in html and html.count("&lt;script&gt;") > 20
    page.write(tmp_path / "report.html")


def test_the_page_needs_nothing_else():
    html = full(classes=40, notes=["see http://example.org"]).html()
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,"))
            assert "://" not in (value or "")
            for target in re.findall(r"url\((.*?)\)", value or ""):
                assert target.startswith("#")
    assert html.count("http") == 1 + html.count("http-equiv")  # the note is text
    assert "@import" not in html and "url(" not in module.STYLE_SHEET.read_text()
    assert "default-src 'none'" in html


def test_references_lead_to_one_element_each(pictures):
    page = Page(full(history=history(60)).html())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for value in attributes.values():
            for target in re.findall(r"^#(.+)|url\(#(.+?)\)", value or ""):
                assert "".join(target) in ids
        assert attributes.get("for", ids[0]) in ids


def test_colours_follow_the_page(pictures):
    html = full().html()
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--line-0)" in drawn and not re.search(r"(fill|stroke): #", drawn)
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_equal_reports_give_equal_pages():
    assert full().html() == full().html()


def test_matplotlibs_own_settings_stay_and_do_not_matter(pictures):
    import matplotlib

    html = full().html()
    settings = {
        "text.usetex": True, "lines.linewidth": 9, "lines.markeredgewidth": 5, "font.size": 30,
        "axes.facecolor": "red", "axes.labelcolor": "red", "savefig.bbox": "tight",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        before = dict(matplotlib.rcParams)
        assert full().html() == html
        assert dict(matplotlib.rcParams) == before


def test_size(pictures):
    assert len(full().html()) < 300_000
    noise = mistakes(24, (224, 224, 3))
    assert len(full(mistakes=noise, history=history(500)).html()) < 1_000_000


# Partial and odd data


def test_an_empty_report():
    text = Page(Report("", []).html()).text
    assert "Training report" in text and "Nothing has been measured yet." in text
    assert "Confusion" not in text and "nan" not in text


@pytest.mark.parametrize(
    "entries",
    [
        [{}],
        [{"epoch": 1}],
        [{"train_loss": 0.5}],
        [{"epoch": 1, "train_loss": math.nan, "accuracy": math.inf}],
        [{"epoch": e, "train_loss": x} for e, x in enumerate((1.0, math.nan, -math.inf, 0.1))],
        [{"epoch": 1, "loss": 0.0}, {"epoch": 1, "loss": 0.0}],
        [{"epoch": 1, "loss": 1.0}, {"step": 5, "accuracy": 0.5}, {"val_loss": 2.0, "loss": 3}],
        [{"step": s, "loss": x} for s, x in enumerate((1e-300, 1e300, 1e99, -1e99))],
        [{"step": s, "loss": x} for s, x in enumerate((1e-29, 1e99))],
        [{"step": s, "loss": x} for s, x in enumerate((5e-324, 1e-310))],
        [{"step": 1e15 + s, "loss": 7.0} for s in range(3)],
        [{"epoch": np.float32(1), "loss": np.float64(2), "count": np.int64(3), "on": True}],
        [{"epoch": e, "loss": x} for e, x in enumerate((None, "a", 10**400, 2.0))],
        [{"epoch": -e, "loss": e} for e in range(5)],
        [{"epoch": e, "точность": 0.1 * e, "精度": 1 - e} for e in range(3)],
    ],
    ids=range(15),
)
def test_odd_histories(entries):
    page = Page(Report("x", entries).html())
    assert "Curves" in page.text


def test_a_lost_value_is_mentioned_and_an_absent_one_is_not(pictures):
    entries = [{"epoch": e, "loss": 1.0} for e in range(4)]
    entries[1]["loss"] = math.nan
    del entries[2]["loss"]
    assert "1 value is not finite" in Page(Report("x", entries).html()).text


def test_long_histories_are_thinned_and_keep_their_extremes(pictures):
    values = np.sin(np.arange(20_000))
    values[777] = 9
    places = module._thinned(values)
    assert len(places) <= module.MOST_POINTS + 2
    assert {0, 777, len(values) - 1} <= set(places)
    entries = [{"step": i, "loss": v + 2} for i, v in enumerate(values.tolist())]
    html = Report("x", entries).html()
    assert len(html) < 400_000 and "200 of 20,000 measurements" in Page(html).text


def test_many_measures(pictures):
    entries = [{"epoch": e, **{f"layer{i}": float(i + e) for i in range(30)}} for e in range(2)]
    page = Page(Report("x", entries).html())
    assert "6 more are in the table only" in page.text and "layer29" in page.text


@pytest.mark.parametrize(
    ("confusion", "text"),
    [
        (np.array([[5]]), "5 of 5 examples right"),
        (np.zeros((3, 3)), "No example has been counted"),
        (np.zeros((0, 0)), "No example has been counted"),
        (np.ones((3, 4)), "Left out: a confusion matrix is (K, K) numbers, got (3, 4)"),
        (np.ones(3), "got (3,)"),
        (np.array([["a"]]), "got (1, 1)"),
        ([[1], [2, 3]], "got list"),
        (np.array([[np.nan, 1.5], [-3, 1.5]]), "1.5 of 3 examples right (50.00%)"),
        (np.array([[0, 0], [4, 0]]), "0 of 4 examples right"),
        (np.eye(1001), "1,001 of 1,001 examples right"),
    ],
)
def test_odd_confusion(confusion, text):
    assert text in Page(Report("x", [], confusion=confusion).html()).text


def test_classes_without_names_get_numbers():
    mistake = Mistake(np.zeros((2, 2, 1)), 2, -1, math.nan, 2.0)
    text = Page(full(classes=("", "dog"), confusion=np.eye(3), mistakes=[mistake]).html()).text
    for name in ("class 0", "dog", "class 2", "class -1"):
        assert name in text


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        (np.ones((3, 3, 3, 64)), "64 kernels of 3 × 3 pixels."),
        (np.ones((3, 3, 2, 4)), "and 2 channels, each channel a picture"),
        (np.ones((3, 3, 64, 64)), "the first 256 pictures"),
        (np.zeros((1, 1, 1, 1)), "1 kernel of 1 × 1 pixels"),
        (np.full((3, 3, 1, 2), np.nan), "2 kernels"),
        (np.ones((3, 3, 1, 2), bfloat16), "2 kernels"),
        (np.ones((128, 784)), "Left out: kernels are (height, width, channels, filters)"),
        (np.ones((3, 3, 0, 4)), "Left out"),
        (np.ones((3, 3, 1, 2), complex), "Left out"),
    ],
)
def test_filters(pictures, filters, text):
    assert text in Page(Report("x", [], filters=filters).html()).text


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (np.zeros((5, 7)), True),
        (np.full((5, 7, 3), np.nan), True),
        (np.full((300, 2, 3), 0.5, bfloat16), True),
        (np.zeros((5, 7, 2)), False),
        (np.zeros((0, 7, 1)), False),
        (np.zeros(9), False),
        (None, False),
    ],
)
def test_odd_images(pictures, image, shown):
    page = Page(Report("x", [], mistakes=[Mistake(image, 0, 1, 0.5, 0.5)]).html())
    assert len(page.all("img")) == shown and ("Left out" in page.text) != shown


def test_many_mistakes(pictures):
    page = Page(full(mistakes=mistakes(60)).html())
    assert len(page.all("img")) == 48 + 1 and "The first 48 of 60." in page.text


def test_settings_of_every_kind():
    settings = {
        "a": {"b": {"c": 1}},
        "none": None,
        "empty": {},
        "list": [1, 2],
        "array": np.eye(2),
        "long": "x" * 5000,
    }
    text = Page(Report("x", [], configuration=settings).html()).text
    for row in ("a.b.c 1", "none none", "empty none", "list [1, 2]", "xxx ..."):
        assert row in text


# Without Matplotlib, and on disk


def test_without_matplotlib(no_matplotlib):
    page = Page(full().html())
    assert module.NO_PICTURES in page.text and "pip install 'palto[plot]'" in page.text
    assert not page.all("svg") and not page.all("img")
    for text in ("87.65%", "All numbers", "82.00%", "kind 3", "guess kind 1 98.7%"):
        assert text in page.text


def test_write(tmp_path):
    path = tmp_path / "runs" / "first" / "report.html"
    assert full().write(str(path)) == path
    assert path.read_text(encoding="utf-8") == full().html()
    assert Report("other", []).write(path).read_text(encoding="utf-8") == (
        Report("other", []).html()
    )
    assert os.listdir(path.parent) == ["report.html"]


def test_a_write_that_fails_leaves_the_old_page(tmp_path, monkeypatch):
    path = Report("old", []).write(tmp_path / "report.html")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Report("new", []).write(path)
    assert "old" in path.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    path = Report("old", []).write(tmp_path / "report.html")
    monkeypatch.setattr(module, "_headline", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Report("new", []).write(path)
    assert os.listdir(tmp_path) == ["report.html"]
