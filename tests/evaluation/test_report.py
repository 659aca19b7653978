"""The report: its content, its size, and its page in a real browser if one is installed."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest

from change.evaluation.metrics import Counts
from change.evaluation.report import ImageCase, choose_cases, overlay, photo, write_report
from tests.conftest import draw_pair

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVIL = """<img src=x onerror="document.title='owned'"> & 'it' </script><!--\u2028 $data __DATA__"""
RED, BLUE, GREEN = (255, 0, 0, 160), (0, 0, 255, 160), (0, 255, 0, 80)  # FN, FP, TP


def row(name: str, tp: int, fp: int, fn: int, tn: int = 1000, **more: Any) -> dict[str, Any]:
    """Return a row of images.csv: text, empty if undefined."""
    counts = {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    scores = Counts(**counts).scores_or_none()
    texts = {key: "" if value is None else f"{value:.6f}" for key, value in scores.items()}
    return {"image": name, "predicted_share": f"{(tp + fp) / 2000:.6f}", **counts, **texts, "trained_on": False, **more}


def case(name: str, seed: int, labelled: bool = True) -> ImageCase:
    before, after, mask = draw_pair(np.random.default_rng(seed), 96, 64)
    return ImageCase(name, before, after, np.roll(mask > 0, 3, axis=1), mask > 0 if labelled else None)


def result(**more: Any) -> dict[str, Any]:
    """Return the content of metrics.json with every section; some scores are undefined."""
    scores: dict[str, float | None] = {"precision": 0.75, "recall": 0.6, "f1": 2 / 3, "iou": 0.5, "oa": None}
    intervals = {
        "level": 0.95,
        "over": "images",
        "units": 3,
        "too_few": True,
        "scores": {"f1": [0.51, 0.79], "iou": [None, None]},
    }
    return {
        "scores": scores,
        "intervals": intervals,
        "counts": {"tp": 1200, "fp": 400, "fn": 800, "tn": 100},
        "at_half": {"threshold": 0.5, "scores": scores},
        "apart_from_train": {"images": 2, "scores": scores, "intervals": intervals},
        "image_means": {"f1": {"mean": 0.4, "images": 3}, "precision": {"mean": None, "images": 0}},
        "average_precision": 0.8,
        "curve": {
            "threshold": [0.0, 0.5, 0.9],
            "precision": [0.1, 0.8, None],
            "recall": [1.0, 0.6, 0.0],
            "f1": [0.2, 0.7, 0.0],
        },
        "best_threshold": {"threshold": 0.5185546875, "f1": 0.71},
        "objects": {
            "true": 5,
            "found": 3,
            "predicted": 4,
            "false": 1,
            "precision": 0.75,
            "recall": 0.6,
            "f1": 0.67,
            "by_size": [{"pixels": "1-99", "true": 5, "found": 3, "predicted": 0, "false": 0}],
        },
        "boundary": {"tolerance": 2, "precision": 0.5, "recall": 0.25, "f1": None},
        "images": 4,
        "trained_on": [EVIL],
        "protocol": {"threshold": 0.25, "tiles": EVIL, "flips": True},
        "data": {"split": "val", "folder": f"/data/{EVIL}", "fingerprint": "0123456789abcdef" * 4},
        "checkpoint": {
            "path": "runs/<b>&best.pth",
            "sha256": "f" * 64,
            "config": {"backbone": 18, "mean": [0.5, 0.25]},
            "lineage": [{"pass": "base", "epoch": 3, "images": 9, "root": EVIL, "val": {"f1": 0.5}}],
            "left_out": [],
        },
        "versions": {"torch": "2"},
        **more,
    }


ROWS = [
    row("a10", tp=900, fp=100, fn=50, group="g1"),
    row(EVIL, tp=50, fp=300, fn=400, trained_on=True),
    row("a9", tp=500, fp=0, fn=7),
    row("none", tp=0, fp=0, fn=0),
]


# --- without a browser ---


def test_the_worst_come_first_then_the_best_and_none_twice() -> None:
    rows = [row("good", 90, 1, 0), row("bad", 5, 400, 9), row("empty", 0, 0, 0), row("perfect", 50, 0, 0)]
    rows += [row("worse", 0, 0, 700), row("false", 0, 30, 0)]
    assert choose_cases(rows, best=2, worst=2) == ["worse", "bad", "perfect", "good"]
    assert choose_cases(rows, best=9, worst=9) == ["worse", "bad", "false", "good", "perfect"]
    assert choose_cases([]) == []


def test_without_labels_the_most_predicted_are_chosen() -> None:
    rows = [{"image": name, "predicted_share": share} for name, share in (("a", "0.1"), ("b", "0.30"), ("c", "0.2"))]
    assert choose_cases(rows, best=1, worst=1) == ["b", "c"]


def decoded(uri: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_overlay_keeps_the_smallest_object_and_the_colours() -> None:
    changed, mask = np.zeros((2, 60, 80), bool)
    mask[:30, :40] = changed[:30, :40] = True  # found, except for one pixel inside
    changed[10, 10] = False
    mask[45, 7] = True  # missed: a single pixel
    changed[45, 77] = True  # false: another single pixel
    picture = np.asarray(decoded(overlay(changed, mask, (20, 15))).convert("RGBA"))
    assert picture.shape == (15, 20, 4)
    expected = np.zeros((15, 20, 4), np.uint8)
    expected[:8, :10] = GREEN
    expected[11, 1], expected[11, 19] = RED, BLUE
    shown = picture[..., 3] > 0
    np.testing.assert_array_equal(shown, expected[..., 3] > 0)
    np.testing.assert_array_equal(picture[shown], expected[shown])


def test_photos_keep_their_colours_and_their_limit() -> None:
    flat = np.full((50, 70, 3), (200, 100, 50), np.uint8)
    with decoded(photo(flat, (70, 50))) as image:
        assert (image.format, image.size) == ("JPEG", (70, 50))
        assert np.abs(np.asarray(image).astype(int) - (200, 100, 50)).max() <= 3


def test_two_hundred_images_stay_below_20_mb(tmp_path: Path) -> None:
    """The images are noise, which no format compresses, and all of them have rows."""
    rng = np.random.default_rng(0)
    rows = [row(f"tile_{i:04d}", *rng.integers(1, 10_000, 4).tolist(), group=f"group {i // 4}") for i in range(200)]
    names = choose_cases(rows)
    assert len(set(names)) == 18
    photos = rng.integers(0, 256, (2, 1024, 1024, 3), dtype=np.uint8)
    masks = rng.random((2, 1024, 1024)) < 0.5
    write_report(tmp_path / "r.html", result(), rows, (ImageCase(name, *photos, *masks) for name in names))
    assert 1e6 < (tmp_path / "r.html").stat().st_size < 20e6


def held(path: Path) -> dict[str, Any]:
    """Return the data that the script of the page reads."""
    page = path.read_text()
    assert page.count("</script>") == 2
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_holds_numbers_and_cases_in_order(tmp_path: Path) -> None:
    cases = [case("a9", 1), case("a10", 2), case(EVIL, 3)]
    write_report(tmp_path / "r.html", result(), ROWS, iter(cases))
    data = held(tmp_path / "r.html")
    assert data["result"] == result()
    assert [shown["name"] for shown in data["cases"]] == [EVIL, "a10", "a9"]
    assert all(shown["worst"] for shown in data["cases"])
    assert [image["trained_on"] for image in data["rows"]] == [False, True, False, False]
    assert (data["rows"][2]["fn"], data["rows"][3]["f1"]) == (7, None)


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    write_report(tmp_path / "report.html", result(), ROWS, [case(EVIL, 1), case("a10", 2), case("a9", 3)])
    return tmp_path / "report.html"


def opened(browser: Browser, path: Path, width: int = 1280, **options: Any) -> tuple[Page, list[str]]:
    """Open the page; return it and a list that collects errors and requests."""
    page = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: wrong.append(asked.url) if asked.url != path.as_uri() and asked.url[:5] != "data:" else None,
    )
    page.goto(path.as_uri())
    return page, wrong


def test_the_page_says_everything_and_asks_for_nothing(browser: Browser, report: Path) -> None:
    page, wrong = opened(browser, report)
    assert page.title() == "Evaluation of <b>&best.pth on val"
    tiles = page.locator(".tile")
    assert tiles.first.inner_text().split("\n") == ["F1", "66.67", "51.00 \u2013 79.00"]
    assert tiles.nth(1).inner_text().split() == ["IoU", "50.00"]  # no interval is known
    text = page.locator("body").inner_text()
    assert "NOT A TEST SCORE" in text and "Only 3 images: too few" in text
    assert page.locator("h2").all_inner_texts() == [
        "Protocol",
        "Scores",
        "Curves",
        "Objects and boundaries",
        "Images",
        "Pictures",
        "Record",
    ]
    # Names are shown unchanged in the alarm, the folder, the history, the table and the picture; none became markup.
    assert " ".join(text.split()).count("</script><!-- $data __DATA__") >= 5
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 96)")
    assert page.locator("svg").count() == 4
    # The curve ends at an undefined precision, and the line of the threshold is at a quarter of the axis.
    curves = [page.locator("svg .curve").nth(i).get_attribute("d") or "" for i in (0, 3)]
    assert [curve.count("L") for curve in curves] == [1, 2]
    assert "NaN" not in page.content() and "undefined" not in text
    assert wrong == []


def test_the_page_may_not_load_anything(browser: Browser, report: Path) -> None:
    """The policy also blocks requests that a name might smuggle in."""
    page, wrong = opened(browser, report)
    source = (report.parent / "other.png").as_uri()
    loaded = """source => new Promise(done => {
        const image = new Image();
        Object.assign(image, {onload: () => done(true), onerror: () => done(false), src: source});
    })"""
    PIL.Image.new("L", (1, 1)).save(report.parent / "other.png")
    assert page.evaluate(loaded, source) is False
    assert any("Content Security Policy" in line for line in wrong)


def clip(stage: Locator) -> str:
    return str(stage.locator(".before").evaluate("node => getComputedStyle(node).clipPath"))


def test_the_slider_follows_mouse_and_keyboard(browser: Browser, report: Path) -> None:
    page, wrong = opened(browser, report)
    stage, slider = page.locator(".stage").first, page.get_by_role("slider").first
    assert EVIL in (slider.get_attribute("aria-label") or "")
    slider.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=5)
    page.mouse.up()
    value = float(slider.input_value())
    assert value == pytest.approx(80, abs=1)
    assert clip(stage) == f"inset(0px {100 - value:g}% 0px 0px)"
    before = clip(stage)
    page.keyboard.press("ArrowLeft")
    assert float(slider.input_value()) < value and clip(stage) != before
    page.keyboard.press("Home")
    assert slider.input_value() == "0" and "100%" in clip(stage)
    assert clip(page.locator(".stage").nth(1)) == "inset(0px 50% 0px 0px)"  # the others stay as they are
    assert wrong == []


def test_overlays_go_on_and_off_one_by_one_and_all_together(browser: Browser, report: Path) -> None:
    page, wrong = opened(browser, report)

    def visible() -> list[bool]:
        return [stage.locator(".overlay").first.is_visible() for stage in page.locator(".stage").all()]

    one, every = page.get_by_role("button", name="overlay", exact=True), page.get_by_role("button", name="overlays")
    assert visible() == [True, True, True]
    one.nth(1).click()
    assert visible() == [True, False, True] and one.nth(1).get_attribute("aria-pressed") == "false"
    every.click()
    assert visible() == [False] * 3 and one.first.get_attribute("aria-pressed") == "false"
    every.press("Enter")
    assert visible() == [True] * 3
    assert page.locator(".bar .key").inner_text().split() == ["found", "missed", "false"]
    narrow = page.locator(".case").first.bounding_box()
    page.get_by_role("button", name="enlarge").first.click()
    wide = page.locator(".case").first.bounding_box()
    assert narrow and wide and wide["width"] > 1.9 * narrow["width"]
    assert wrong == []


def test_the_table_sorts_and_leads_to_the_pictures(browser: Browser, report: Path) -> None:
    page, wrong = opened(browser, report)

    def first_cells() -> list[str]:
        return [cell[:4] for cell in page.locator(".rows tbody th").all_inner_texts()]

    assert first_cells() == ["<img", "a10", "a9", "none"]  # most wrong pixels first
    page.get_by_role("button", name="F1").click()
    assert first_cells() == ["a9", "a10", "<img", "none"]
    page.get_by_role("button", name="F1").press("Enter")
    assert first_cells() == ["<img", "a10", "a9", "none"]  # undefined stays last
    assert page.locator(".rows [aria-sort=ascending]").inner_text().startswith("F1")
    page.get_by_role("button", name="Image").click()
    assert first_cells() == ["<img", "a9", "a10", "none"]
    assert page.locator(".rows tr", has_text="trained on").count() == 1
    page.locator(".rows").get_by_role("link", name="a9").click()
    target = page.locator(".case:target")
    assert target.locator("h4").inner_text() == "a9"
    box = target.bounding_box()
    assert box and 0 <= box["y"] < 300
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_it_is_readable_in_the_dark_and_on_a_phone(browser: Browser, report: Path, scheme: str, width: int) -> None:
    page, wrong = opened(browser, report, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate(
        "(style => [style.backgroundColor, style.color].map(c => c.match(/\\d+/g).reduce((a, b) => +a + +b, 0)))"
        "(getComputedStyle(document.body))"
    )
    assert (ground < 120 and ink > 600) if scheme == "dark" else (ground > 700 and ink < 150)
    assert wrong == []


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_missing_is_left_out(browser: Browser, tmp_path: Path, labelled: bool) -> None:
    """Without labels there are only protocol, history and pictures; without change all scores are undefined."""
    parts = {key: result()[key] for key in ("protocol", "data", "checkpoint", "images")}
    rows: list[dict[str, Any]] = [{"image": "a", "predicted_share": "0.25"}]
    if labelled:
        parts["scores"] = dict.fromkeys(("precision", "recall", "f1", "iou", "oa"))
        parts["intervals"] = {"level": 0.95, "over": "images", "units": 1, "too_few": True, "scores": {}}
        rows = [row("a", 0, 0, 0)]
    write_report(tmp_path / "r.html", parts, rows, [case("a", 1, labelled)])
    page, wrong = opened(browser, tmp_path / "r.html")
    sections = ["Protocol", "Scores", "Images", "Pictures", "Record"]
    assert page.locator("h2").all_inner_texts() == [name for name in sections if labelled or name != "Scores"]
    assert page.locator(".tile").count() == (4 if labelled else 0)
    key = "found missed false" if labelled else "predicted change"
    assert page.locator(".bar .key").inner_text().split() == key.split()
    assert ("predicted 25.00%" in page.locator("figcaption").inner_text()) != labelled
    write_report(tmp_path / "bare.html", {}, [], [])
    bare, wrong_there = opened(browser, tmp_path / "bare.html")
    assert bare.locator("h1").inner_text() == "Evaluation" and bare.locator("h2").count() == 0
    assert wrong == wrong_there == []


def test_a_scene_has_its_own_headings(browser: Browser, tmp_path: Path) -> None:
    """A report of a scene shows the scene, its largest changes with a scale bar each, and how it was made."""
    chip = photo(np.full((40, 60, 3), 90, np.uint8), (60, 40))
    size = {"width": 60, "height": 40, "before": chip, "after": chip, "scale": {"share": 0.5, "label": "20 m"}}
    found = {"id": 7, "area": "1,234 m²", "pixels": 31, "mean": "0.80", "max": "0.99", "place": EVIL, **size}
    scene = {
        "scale": {"share": 0.25, "label": "1 km"},
        "found": "All polygons",
        "changes": [found, {**found, "id": 9, "area": None, "pixels": 1}],
        "about": {"Before": {"file": EVIL}, "Prediction": {"threshold": 0.5}},
    }
    given = {"title": "Change from 1 to 2", "summary": "2 polygons", "scene": scene, "warnings": ["shifted"]}
    rows = [{"image": "The whole scene", "predicted_share": 0.1}]
    write_report(tmp_path / "r.html", given, rows, [case("The whole scene", 1, labelled=False)])
    page, wrong = opened(browser, tmp_path / "r.html")
    assert page.locator("h1").inner_text() == page.title() == "Change from 1 to 2"
    assert page.locator("h2").all_inner_texts() == ["Scene", "Largest changes", "How it was made"]
    assert page.locator("h4").all_inner_texts() == [
        "The whole scene",
        "Change 7: 1,234 m², 31 pixels",
        "Change 9: 1 pixel",
    ]
    bars = page.locator(".scale")
    assert bars.all_inner_texts() == ["1 km", *["20 m"] * 4]
    stage, bar = page.locator(".stage").bounding_box(), bars.first.bounding_box()
    assert stage and bar and bar["width"] == pytest.approx(0.25 * stage["width"], abs=1)
    assert page.locator(".bar .key").inner_text().split("\n") == ["predicted change", "no data"]
    assert page.locator(".tile, .rows").count() == 0 and "Warning: shifted" in page.locator("body").inner_text()
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert wrong == []
