"""The filters, in a browser where one is installed."""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from medalign.eval.html_report.write import write_report
from medalign.teacher_cache.reader import TeacherCache

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")

ASK = """
<script>
const said = [];
const cards = [...document.querySelectorAll(".card")];
const shown = () => cards.map((card) => card.hidden ? "-" : "x").join("");
const set = (id, value) => {
  const box = document.getElementById(id);
  box.type === "checkbox" ? (box.checked = value) : (box.value = value);
  box.dispatchEvent(new Event("input", {bubbles: true}));
  said.push(`${id}=${value}: ${shown()} ${document.getElementById("shown").textContent}`);
};
const drawn = (k) => getComputedStyle(document.querySelector(`g.look-${k}`)).display !== "none";
said.push(`hidden ${document.getElementById("filters").hidden}`);
for (const value of ["any", "every", "0", "1", ""]) set("verdict", value);
for (const value of [true, false]) set("differ", value);
for (const value of ["OPEN", "CHOICE", ""]) set("type", value);
for (const value of ["<SCRIPT> what", "lung where", "verdict", ""]) set("search", value);
said.push(`drawn ${drawn(0)}`);
set("look", "0");
said.push(`drawn ${drawn(0)}`);
document.title = said.join("|");
</script>
</body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_filters_hide_what_does_not_fit(task: Any, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    cache = TeacherCache.open(task.store)
    write_report(task.predictions, task.manifest, task.images, "vqa", out, cache=cache)
    html = re.sub("<meta http-equiv[^>]*>", "", out.read_text(encoding="utf-8"))
    out.write_text(html.replace("</body>", ASK), encoding="utf-8")
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *QUIET]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", out.as_uri()]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    title = re.search("<title>(.*?)</title>", found)
    assert title is not None
    assert unescape(title[1]).split("|") == [
        "hidden false",
        "verdict=any: x-xxxx 5 of 6 samples",
        "verdict=every: --xx-- 2 of 6 samples",
        "verdict=0: --xx-- 2 of 6 samples",
        "verdict=1: x-xxxx 5 of 6 samples",
        "verdict=: xxxxxx 6 of 6 samples",
        "differ=true: x-xxxx 5 of 6 samples",
        "differ=false: xxxxxx 6 of 6 samples",
        "type=OPEN: -xx--- 2 of 6 samples",
        "type=CHOICE: ------ 0 of 6 samples",
        "type=: xxxxxx 6 of 6 samples",
        "search=<SCRIPT> what: --x--- 1 of 6 samples",
        "search=lung where: -x---- 1 of 6 samples",
        "search=verdict: ------ 0 of 6 samples",
        "search=: xxxxxx 6 of 6 samples",
        "drawn false",
        "look=0: xxxxxx 6 of 6 samples",
        "drawn true",
    ]
