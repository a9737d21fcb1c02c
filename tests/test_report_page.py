"""report.html in a real browser: sorting, columns, and the sliders over pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_report import ROOF, change_record, row, run_folder

from benchmarks.report.page import write_report

__all__ = ["run_folder"]
pytestmark = pytest.mark.slow

COLOURS = {"grey": 90, "truth": (200, 40, 40), "best.pt": (40, 200, 40), "pruned": (40, 40, 200)}
MAPS = {("truth", "best.pt"): (250, 250, 10), ("truth", "pruned"): (10, 250, 250), ("best", "pruned"): (250, 10, 250)}


@pytest.fixture
def page(run_folder: Path) -> Path:
    """A report with rows of two conditions, one of which failed, and one photograph in plain colours."""
    others = [row("best, batch 8", batch=8), row("pruned, batch 8", batch=8, p50_ms=9.0)]
    better = [row("little", l1_delta_pct=-0.5), row("much", l1_delta_pct=-0.75), row("hardly", l1_delta_pct=-1e-7)]
    change_record(run_folder, rows=others + better, roof=ROOF)
    folder = run_folder / "pictures"
    folder.mkdir()
    for name, colour in {**COLOURS, **MAPS}.items():
        Image.new("RGB", (120, 80), colour if isinstance(colour, tuple) else (colour,) * 3).save(folder / _file(name))
    differences: dict[str, dict[str, str]] = {"truth": {}, "best": {}}
    for against, name in MAPS:
        differences[against][name] = _file((against, name))
    photo = {"name": "cat.jpg", "kind": "typical", "width": 120, "height": 80, "l1": {"grey": 0.2, "best.pt": 0.1},
             "pictures": {name: _file(name) for name in COLOURS}, "differences": differences}  # fmt: skip
    record = {"format_version": 1, "best": "best.pt", "variants": ["pruned"], "judged": None, "scale": 0.1,
              "bar": ["#000004", "#fcfdbf"], "photos": [photo]}  # fmt: skip
    (folder / "pictures.json").write_text(json.dumps(record))
    return write_report(run_folder)


def _file(name: str | tuple[str, str]) -> str:
    return f"{name if isinstance(name, str) else '-'.join(name)}.jpg"


def models(browser: Any) -> list[str]:
    """The models of the results, from above, without what failed to have a harmless name."""
    rows = browser.find_elements("css selector", ".scroll[aria-labelledby=results] tbody th")
    return [each.get_attribute("data-value") for each in rows]


def test_headers_sort_by_figures_with_the_keyboard_too(browser: Any, page: Path) -> None:
    from selenium.webdriver import Keys

    browser.get(page.as_uri())
    assert [name for name in models(browser) if "<" not in name] == [
        *("best.pt", "pruned", "best", "little", "much", "hardly"),
    ]
    headers = browser.find_elements("css selector", ".scroll[aria-labelledby=results] thead th")
    (time,) = (each for each in headers if each.text.startswith("Latency"))
    button = time.find_element("tag name", "button")
    button.click()
    assert time.get_attribute("aria-sort") == "ascending"
    assert models(browser)[0] == "pruned" and "<" in models(browser)[-1]  # what failed comes last
    button.send_keys(Keys.ENTER)
    assert time.get_attribute("aria-sort") == "descending"
    assert models(browser)[-2] == "pruned" and "<" in models(browser)[-1]
    (speed,) = (each for each in headers if each.text.startswith("Speed-up"))
    speed.find_element("tag name", "button").click()
    assert (speed.get_attribute("aria-sort"), time.get_attribute("aria-sort")) == ("descending", None)
    assert models(browser)[0] == "pruned"
    (change,) = (each for each in headers if each.text.startswith("\u0394L1"))
    change.find_element("tag name", "button").click()
    assert models(browser)[:3] == ["much", "little", "hardly"]


def test_extra_columns_are_shown_on_demand(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    extra = browser.find_element("css selector", ".scroll[aria-labelledby=results] th.extra")
    toggle = browser.find_element("css selector", ".tools button")
    assert (extra.is_displayed(), toggle.get_attribute("aria-pressed")) == (False, "false")
    toggle.click()
    assert (extra.is_displayed(), toggle.get_attribute("aria-pressed")) == (True, "true")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def colour_at(browser: Any, share: float, tmp_path: Path, within: str = "#pictures") -> tuple[int, ...]:
    """The colour that the stage shows at a share of its width, near its lower edge."""
    stage = browser.find_element("css selector", f"{within} .stage")
    stage.screenshot(str(tmp_path / "stage.png"))
    with Image.open(tmp_path / "stage.png") as picture:
        pixel = picture.convert("RGB").getpixel((int(share * picture.width), picture.height - 12))
    assert isinstance(pixel, tuple)
    return pixel


def is_near(colour: tuple[int, ...], wanted: Any) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(colour, wanted, strict=True))


def test_the_slider_uncovers_what_was_chosen(browser: Any, page: Path, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.select import Select

    browser.get(page.as_uri())
    slider = browser.find_element("css selector", "#pictures .stage input")
    assert is_near(colour_at(browser, 0.25, tmp_path), COLOURS["best.pt"])
    assert is_near(colour_at(browser, 0.75, tmp_path), COLOURS["pruned"])
    slider.send_keys(Keys.END)
    assert is_near(colour_at(browser, 0.9, tmp_path), COLOURS["best.pt"])
    slider.send_keys(Keys.HOME)
    assert is_near(colour_at(browser, 0.1, tmp_path), COLOURS["pruned"])
    ActionChains(browser).move_to_element_with_offset(slider, slider.rect["width"] * 0.2, 0).click().perform()
    assert is_near(colour_at(browser, 0.6, tmp_path), COLOURS["best.pt"])
    assert "% best.pt" in slider.get_attribute("aria-valuetext")
    assert slider.get_attribute("aria-label").startswith("cat.jpg")
    _, right = (Select(each) for each in browser.find_elements("css selector", "#pictures select"))
    assert [option.text for option in right.options] == ["grey input", "truth", "best.pt", "pruned"]
    right.select_by_visible_text("truth")
    assert is_near(colour_at(browser, 0.9, tmp_path), COLOURS["truth"])


def test_the_first_screen_compares_two_of_four_with_the_keyboard(browser: Any, page: Path, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    browser.get(page.as_uri())
    left, right = browser.find_elements("css selector", ".hero select")
    assert [each.text for each in left.find_elements("css selector", "option")] == [
        "grey input", "the photograph", "best.pt, the original", "pruned, recommended",
    ]  # fmt: skip
    assert not browser.find_elements("css selector", ".hero input[type=radio]")
    left.send_keys("the")
    right.send_keys("grey")
    slider = browser.find_element("css selector", ".hero .stage input")
    for _ in range(20):
        slider.send_keys(Keys.ARROW_LEFT)
    assert is_near(colour_at(browser, 0.1, tmp_path, ".hero"), COLOURS["truth"])
    assert is_near(colour_at(browser, 0.6, tmp_path, ".hero"), (90, 90, 90))
    assert slider.get_attribute("aria-valuetext") == "30 % the photograph, 70 % grey input"
    assert len([each for each in browser.find_elements("css selector", ".hero .tile") if each.is_displayed()]) == 4


def test_without_scripts_there_are_plain_pictures_and_all_columns(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(page.as_uri())
    # Seen by its size, since nothing of the driver's runs in the page either.
    boxes = browser.execute_cdp_cmd("DOMSnapshot.captureSnapshot", {"computedStyles": ["display"]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    names = boxes["strings"]
    nodes, layout = boxes["documents"][0]["nodes"], boxes["documents"][0]["layout"]
    laid_out = {index: box for index, box in zip(layout["nodeIndex"], layout["bounds"], strict=True) if box[2] > 50}
    tags = [names[nodes["nodeName"][index]] for index in laid_out]
    assert tags.count("IMG") == 4 + 7 and "SELECT" not in tags and "INPUT" not in tags and "BUTTON" not in tags


def test_no_other_script_runs_than_the_pages_own(browser: Any, page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    injected = "<script>document.title = 'injected'</script><b onclick=\"document.title = 'injected'\" id=bait>x</b>"
    page.write_text(html.replace("</main>", f"{injected}</main>"), encoding="utf-8")
    browser.get(page.as_uri())
    browser.execute_script("document.getElementById('bait').click()")
    assert browser.title == "colorpress report"
    assert browser.find_elements("css selector", ".hero .stage")  # while its own does
    browser.get_log("browser")


def test_difference_maps_take_the_pictures_places(browser: Any, page: Path, tmp_path: Path) -> None:
    browser.get(page.as_uri())
    to_truth, to_best = browser.find_elements("css selector", "#pictures input[type=radio]")[1:]
    to_truth.click()
    assert is_near(colour_at(browser, 0.25, tmp_path), MAPS["truth", "best.pt"])
    assert is_near(colour_at(browser, 0.75, tmp_path), MAPS["truth", "pruned"])
    to_best.click()
    assert is_near(colour_at(browser, 0.25, tmp_path), COLOURS["best.pt"])  # it has no difference to itself
    assert is_near(colour_at(browser, 0.75, tmp_path), MAPS["best", "pruned"])


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_never_scrolls_sideways(browser: Any, page: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_paper_there_are_pictures_side_by_side_instead_of_sliders(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = [each for each in browser.find_elements("css selector", "#pictures .tile") if each.is_displayed()]
    assert [each.get_attribute("data-name") for each in shown] == ["grey", "truth", "best.pt", "pruned"]
    assert len({each.rect["y"] for each in shown}) == 1
    assert not any(each.is_displayed() for each in browser.find_elements("css selector", ".stage"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
