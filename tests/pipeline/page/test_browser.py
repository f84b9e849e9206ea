"""Both pages in a real browser: nothing is requested, nothing fails, their controls work by keyboard, and axe-core
finds nothing serious in light and dark, at a desktop's width and a phone's."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adatsq_pipe.pipeline import report
from adatsq_pipe.pipeline.page import comparison_page
from tests.pipeline.test_report_texts import with_captions, written
from tests.support.compared import FULL, GAPS, STEP, compared_run

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.run,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]
PAGES = ["report", "compare"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of both pages, of made-up runs whose captions are hostile or of other scripts."""
    captions = "a <b>cat</b> & $_$", "\u82b1"
    with pytest.MonkeyPatch.context() as patch:
        with_captions(patch, *captions)
        run, _ = written(tmp_path_factory.mktemp("report"), patch)
    made = compared_run(tmp_path_factory.mktemp("compare"), *captions)
    assert comparison_page.write_page(made) == {}
    return {"report": run.report / report.PAGE, "compare": made.path / comparison_page.PAGE}


class Opened:
    """A page in the browser, and what it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, size: str, scheme: str) -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.wrong, self.requests = list[str](), list[str]()
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function(
            "[...document.querySelectorAll('[data-plot]')].every((p) => p.querySelector('svg'))"
        )

    def values(self, table: str, column: int) -> list[str]:
        """The values of a table's column, in the order in which they are shown."""
        rows = f"[...document.querySelectorAll('[data-table={table}] tbody tr')]"
        values: list[str] = self.page.evaluate(f"{rows}.map((row) => row.cells[{column}].dataset.value)")
        return values

    def shade(self, selector: str) -> Any:
        """Colour of the middle of an element as the browser draws it, [3] of 0 to 255."""
        with Image.open(io.BytesIO(self.page.locator(selector).first.screenshot())) as picture:
            return np.asarray(picture.convert("RGB"), dtype=float)[picture.height // 2, picture.width // 4]


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Any, pages: dict[str, Path]) -> Iterator[Opened]:
    """A page at a size and in a scheme, which `request.param` names."""
    name, size, scheme = request.param
    shown = Opened(browser, pages[name], size, scheme)
    yield shown
    shown.context.close()


def of(*names: str, size: str = "desktop", scheme: str = "light") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", [(name, size, scheme) for name in names], indirect=True, ids=names)


every = pytest.mark.parametrize(
    "opened",
    [(name, size, scheme) for name in PAGES for size, scheme in (("desktop", "light"), ("phone", "dark"))],
    indirect=True,
    ids=lambda case: "-".join(case),
)


@every
def test_nothing_fails_nothing_is_requested_and_nothing_is_wider_than_the_window(opened: Opened) -> None:
    assert opened.wrong == []
    assert [url for url in opened.requests[1:] if not url.startswith(("data:", "blob:"))] == []
    assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    broken = "[...document.images].filter((one) => !one.complete || !one.naturalWidth).length"
    assert opened.page.evaluate(broken) == 0 and opened.page.evaluate("document.images.length") >= 6


@every
def test_axe_finds_nothing_serious(opened: Opened) -> None:
    serious, passes = list[tuple[str, str, list[str]]](), 0
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(opened.page).response
        passes += len(found["passes"])
        serious += [
            (scheme, rule["id"], [node["html"][:200] for node in rule["nodes"][:3]])
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
        ]
    assert serious == []
    assert passes > 30, "axe looked at the page"


@every
def test_the_tab_key_reaches_every_control(opened: Opened) -> None:
    wanted = "[...document.querySelectorAll('button, select, input[type=range]:enabled, a')]"
    controls = opened.page.evaluate(f"{wanted}.length")
    opened.page.evaluate("window.seen = new Set(); addEventListener('focusin', (event) => seen.add(event.target))")
    for _ in range(controls + 40):
        opened.page.keyboard.press("Tab")
    missed = opened.page.evaluate(f"{wanted}.filter((one) => !seen.has(one)).map((one) => one.outerHTML)")
    assert controls > 10 and missed == []


@of("report")
def test_the_arrow_keys_move_the_slider_and_the_picture_follows(opened: Opened) -> None:
    slider = opened.page.locator(".pair input[type=range]").first
    cut = "getComputedStyle(document.querySelector('.pair .stage img.over')).clipPath"
    assert opened.page.evaluate(cut) == "inset(0px 0px 0px 50%)"
    slider.focus()
    for _ in range(7):
        opened.page.keyboard.press("ArrowLeft")
    assert opened.page.evaluate(cut) == "inset(0px 0px 0px 43%)"
    opened.page.keyboard.press("End")
    assert opened.page.evaluate(cut) == "inset(0px 0px 0px 100%)"


@of("report")
def test_a_key_shows_the_difference_map_and_hides_it(opened: Opened) -> None:
    button = opened.page.locator("[data-difference]").first
    seen = "getComputedStyle(document.querySelector('.stage img.gap')).visibility"
    for pressed, visibility in (("true", "visible"), ("false", "hidden")):
        button.press("Enter")
        assert (button.get_attribute("aria-pressed"), opened.page.evaluate(seen)) == (pressed, visibility)


@of("report")
def test_the_heat_maps_have_a_cell_for_every_layer_and_step(opened: Opened) -> None:
    """The made-up run has three layers, of which two are rounded, and three steps."""
    sizes = "document.querySelector('[data-plot=policy]').calcdata.map(([one]) => [one.z.length, one.z[0].length])"
    assert opened.page.evaluate(sizes) == [[2, 3], [2, 3]]
    assert opened.page.locator("[data-plot=policy] .hm image").count() == 2


@pytest.mark.parametrize(
    ("opened", "table", "column"),
    [(("report", "desktop", "light"), "layers", 3), (("compare", "phone", "dark"), "methods", 2)],
    indirect=["opened"],
    ids=["report", "compare"],
)
def test_a_table_is_sorted_by_a_key_on_its_heading(opened: Opened, table: str, column: int) -> None:
    button = opened.page.locator(f'[data-table={table}] [data-sort="{column}"]')
    orders = list[list[float]]()
    for key, said in (("Enter", "ascending"), ("Space", "descending")):
        button.press(key)
        orders.append([float(value) for value in opened.values(table, column)])
        assert button.locator("..").get_attribute("aria-sort") == said
    assert len(orders[0]) >= 2 and orders[0] == sorted(orders[0]) and orders[1] == orders[0][::-1]
    opened.page.locator(f'[data-table={table}] [data-sort="0"]').click()
    names = opened.values(table, 0)
    assert names == sorted(names)
    assert button.locator("..").get_attribute("aria-sort") is None, "one column says that it is sorted"


@of(*PAGES)
def test_the_csv_of_every_table_and_plot_has_its_rows(opened: Opened) -> None:
    data = opened.page.evaluate("data")
    buttons = opened.page.locator("[data-csv]")
    assert buttons.count() == len(data) >= 4
    for button in buttons.all():
        with opened.page.expect_download() as download:
            button.click()
        wanted = data[button.get_attribute("data-csv")]
        assert download.value.suggested_filename == f"{wanted['name']}.csv"
        text = Path(download.value.path()).read_text("utf-8-sig")
        head, *rows = csv.reader(io.StringIO(text, newline=""))
        assert head == wanted["columns"] and len(rows) == len(wanted["rows"])
        for row, cells in zip(rows, wanted["rows"], strict=True):
            for got, cell in zip(row, cells, strict=True):
                assert float(got) == cell if isinstance(cell, int | float) else got == (cell or "")


@of(*PAGES)
def test_a_plot_can_be_saved_as_a_picture(opened: Opened) -> None:
    with opened.page.expect_download() as download:
        opened.page.locator("[data-png]").first.click()
    with Image.open(download.value.path()) as picture:
        assert picture.format == "PNG" and picture.width > 1000


@of("compare")
def test_another_caption_shows_every_methods_picture_of_it(opened: Opened) -> None:
    draws = opened.page.evaluate("draws")
    select = opened.page.locator("#draw")
    select.focus()
    opened.page.keyboard.press("ArrowDown")
    assert select.input_value() == "1"
    shown = opened.page.evaluate("[...document.querySelectorAll('.tiles img.over')].map((one) => one.src)")
    tiles = draws[1]["tiles"]
    assert shown == [draws[1]["full"], tiles["w4a4 rtn"]["source"], tiles["w4a4 quarot"]["source"]]
    assert opened.page.locator("#shown").text_content() == f"{draws[1]['prompt']}, seed {draws[1]['seed']}"
    assert "<b>" in {draw["prompt"][2:5] for draw in draws}, "a caption's markup is text"
    opened.page.locator('[data-turn="-1"]').press("Enter")
    opened.page.locator('[data-turn="-1"]').press("Enter")
    assert select.input_value() == str(len(draws) - 1), "it turns around at the end"


@of("compare")
def test_pictures_are_drawn_with_the_shades_that_were_stored(opened: Opened) -> None:
    """Each whole, divided by the slider, and as a difference to full precision eight times larger."""
    rtn, quarot = (f'[data-tile="w4a4 {name}"] .stage' for name in ("rtn", "quarot"))
    full = FULL + 3 * STEP  # The first that is shown is the fourth draw.
    levels = [255 * full, *(255 * (full + gap) for gap in GAPS)]
    for selector, level in zip(("[data-tile=full] .stage", rtn, quarot), levels, strict=True):
        assert opened.shade(selector) == pytest.approx([level] * 3, abs=1)
    opened.page.locator("input[value=slides]").check()
    assert opened.shade(quarot) == pytest.approx([levels[0]] * 3, abs=1), "left of the line it is full precision"
    share = opened.page.locator("#share")
    share.focus()
    opened.page.keyboard.press("Home")
    assert opened.shade(quarot) == pytest.approx([levels[2]] * 3, abs=1), "the line is at the left edge"
    opened.page.locator("input[value=differ]").check()
    for selector, gap in zip((rtn, quarot), GAPS, strict=True):
        exact = round(255 * (full + gap)) - round(255 * full)
        assert opened.shade(selector) == pytest.approx([8 * exact] * 3, abs=8)
    assert share.is_disabled(), "a difference map has no line"


@of("compare", size="phone")
def test_pictures_of_a_draw_have_one_size_that_can_be_changed(opened: Opened) -> None:
    def sizes() -> set[tuple[int, int]]:
        boxes = [one.bounding_box() for one in opened.page.locator(".tiles .stage").all()]
        return {(round(box["width"]), round(box["height"])) for box in boxes}

    ((before, height),) = sizes()
    assert height == pytest.approx(before * 16 / 24, abs=1), "pictures keep their form"
    opened.page.locator("#size").focus()
    opened.page.keyboard.press("End")
    ((after, _),) = sizes()
    assert after > 1.5 * before
