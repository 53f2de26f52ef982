"""A page as Chromium shows it: what is where, and in which colours."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import pathlib
import re
import subprocess

from PIL import Image

WIDTH = 1200
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
    "--force-device-scale-factor=1",
]
DARK = "--blink-settings=preferredColorScheme=0"

# Appended to a copy of the page, which has no script of its own.
MEASURE = """<script>
const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
const root = document.documentElement;
const seen = {width: innerWidth, scroll: root.scrollWidth, height: root.scrollHeight,
              ground: getComputedStyle(document.body).backgroundColor,
              sections: {}, drawings: {}, spills: [], collisions: []};
for (const section of document.querySelectorAll("section")) {
    const outer = box(section);
    seen.sections[section.querySelector("h2").textContent] = outer;
    for (const e of section.querySelectorAll("*:not(title)")) {
        const inner = box(e);
        if (inner[0] < outer[0] - 1 || inner[2] > outer[2] + 1) seen.spills.push(e.outerHTML.slice(0, 120));
    }
}
for (const svg of document.querySelectorAll("svg")) {
    const marks = [...svg.querySelectorAll("rect:not(.ground)")];
    seen.drawings[svg.getAttribute("aria-label")] = {
        box: box(svg),
        marks: marks.map(m => [m.getAttribute("class"), ...box(m), getComputedStyle(m).fill]),
    };
    const texts = [...svg.querySelectorAll("text")];
    texts.forEach((t, i) => texts.slice(i + 1).forEach(u => {
        if (meets(box(t), box(u))) seen.collisions.push([t.textContent, u.textContent]);
    }));
}
root.dataset.seen = JSON.stringify(seen);
</script>
"""


@dataclasses.dataclass
class Mark:
    """One mark of a drawing: where it is and the colour that it should have."""

    kind: str
    left: float
    top: float
    right: float
    bottom: float
    fill: tuple[int, ...]


@dataclasses.dataclass
class Shown:
    """A page as it was shown."""

    width: int
    scroll_width: int
    height: int
    ground: tuple[int, ...]
    sections: dict[str, list[float]]
    drawings: dict[str, list[Mark]]
    spills: list[str]
    collisions: list[list[str]]
    console: list[str]
    picture: Image.Image


def rgb(text: str) -> tuple[int, ...]:
    """`rgb(1, 2, 3)` as numbers."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def chromium(page: pathlib.Path, *flags: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        ["chromium", *FLAGS, *flags, page.as_uri()], capture_output=True, text=True, timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run


def show(page: pathlib.Path, width: int = WIDTH, dark: bool = False) -> Shown:
    """Opens a page twice: a copy that measures itself, then itself for a picture."""
    scheme = [DARK] if dark else []
    copy, shot = page.with_suffix(".measured.html"), page.with_suffix(".png")
    copy.write_text(page.read_text().replace("</body>", MEASURE + "</body>"))
    dom = chromium(copy, f"--window-size={width},1000", "--dump-dom", *scheme).stdout
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom).group(1)))
    run = chromium(page, f"--window-size={width},{seen['height']}", f"--screenshot={shot}", *scheme)
    return Shown(
        width=seen["width"],
        scroll_width=seen["scroll"],
        height=seen["height"],
        ground=rgb(seen["ground"]),
        sections=seen["sections"],
        drawings={
            name: [Mark(kind, *box, rgb(fill)) for kind, *box, fill in drawing["marks"]]
            for name, drawing in seen["drawings"].items()
        },
        spills=seen["spills"],
        collisions=seen["collisions"],
        console=[line for line in run.stderr.splitlines() if "CONSOLE" in line],
        picture=Image.open(io.BytesIO(shot.read_bytes())).convert("RGB"),
    )
