"""The page in a real browser: nothing is requested, nothing fails, and its controls do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import report
from tests.pipeline.test_report_texts import with_captions, written

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.run,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]
ERRORS = """<script>
window.wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message || event.target.src)), true);
console.error = (...words) => wrong.push(words.join(" "));
</script>"""
USE = """<script>
addEventListener("load", () => setTimeout(() => {
  const found = { wrong }, one = (selector) => document.querySelector(selector);
  found.requests = performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !/^(data|blob):/.test(n));
  const slider = one(".pair input[type=range]");
  slider.value = 20;
  slider.dispatchEvent(new Event("input"));
  found.cut = getComputedStyle(one(".pair .stage img.over")).clipPath;
  const button = one("[data-difference]");
  button.click();
  found.difference = [button.getAttribute("aria-pressed"), getComputedStyle(one(".stage img.gap")).visibility];
  const head = one('[data-table=layers] [data-sort="3"]'), cells = () =>
    [...document.querySelectorAll("[data-table=layers] tbody tr")].map((row) => +row.cells[3].dataset.value);
  head.click();
  found.rising = [cells(), head.parentElement.getAttribute("aria-sort")];
  head.click();
  found.falling = [cells(), head.parentElement.getAttribute("aria-sort")];
  const all = (selector) => [...document.querySelectorAll(selector)];
  found.plots = all("[data-plot]").map((p) => [p.dataset.plot, p.querySelectorAll("svg").length > 0]);
  found.unnamed = all("button, input").filter((e) => !(e.textContent.trim() || e.ariaLabel)).length;
  found.bare = all("img:not([alt])").length;
  found.wide = document.documentElement.scrollWidth - innerWidth;
  const csv = [];
  URL.createObjectURL = (blob) => { csv.push(blob.size); return "blob:none"; };
  HTMLAnchorElement.prototype.click = function () { csv.push(this.download); };
  one('[data-csv="layers"]').click();
  found.csv = csv;
  document.body.innerHTML = "<pre id=found></pre>";
  one("#found").textContent = JSON.stringify(found);
}, 500));
</script>"""


@pytest.fixture(params=[1280, 500], ids=["desktop", "phone"])
def found(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with_captions(monkeypatch, "a <b>cat</b> & $_$", "\u82b1")
    run, _ = written(tmp_path, monkeypatch)
    text = (run.report / report.PAGE).read_text("utf-8")
    page = run.report / "used.html"
    page.write_text(text.replace("<head>", f"<head>{ERRORS}", 1).replace("</body>", f"{USE}</body>"), "utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={request.param},900", "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    answer = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer, done.stderr[-2000:]
    text = answer[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    result: dict[str, Any] = json.loads(text)
    return result


def test_the_page_works_in_a_browser(found: dict[str, Any]) -> None:
    assert (found["wrong"], found["requests"]) == ([], [])
    assert found["cut"] == "inset(0px 0px 0px 20%)"
    assert found["difference"] == ["true", "visible"]
    rising, falling = found["rising"], found["falling"]
    assert rising == [sorted(rising[0]), "ascending"] and falling == [rising[0][::-1], "descending"]
    assert rising[0] == [0.02, 0.03, 0.07]
    assert found["plots"] == [["policy", True], ["steps", True]]
    assert (found["unnamed"], found["bare"]) == (0, 0), "every control and picture has a name"
    assert found["wide"] <= 0, "nothing is wider than the window"
    assert found["csv"][1:] == ["layers.csv"] and found["csv"][0] > 100
