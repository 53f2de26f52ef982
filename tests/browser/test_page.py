"""The page of `weightsync explain --html`, in a browser, at 16 and at 4,096 ranks.

Opt-in: tests/browser/run installs Chromium and sets WSYNC_TEST_BROWSER=1. With
WSYNC_BLESS=1 the pictures of docs/pictures are written anew.
"""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

if os.environ.get("WSYNC_TEST_BROWSER") != "1":
    pytest.skip("SKIPPED: no browser looks at the page of explain; run tests/browser/run", allow_module_level=True)

from browser import Mark, Shown, show  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs/pictures"
PICTURE_BYTES_MAX = 200_000
MODEL = ROOT / "tests/models/llama-3.1-70b.json"
# What a mark has to be for its middle to be of its colour.
MARK_PIXELS_MIN = 3
CHARTS = ["traffic matrix", "links against the bound", "timeline"]


def weightsync(*args: object) -> None:
    command = [ROOT / "target/debug/weightsync", *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr


def sixteen(folder: pathlib.Path) -> list[object]:
    layouts = ROOT / "tests/layouts"
    return [layouts / "trainer_tp2_pp2_dp2.json", layouts / "inference_2x_tp4.json", "--bucket-count", 4]


def thousands(folder: pathlib.Path) -> list[object]:
    source, destination = folder / "source.json", folder / "destination.json"
    weightsync("layout", "--config", MODEL, "--megatron", "tp=4,pp=4,dp=128", "-o", source)
    weightsync("layout", "--config", MODEL, "--vllm", "tp=8,replicas=256", "--first-rank", 2048, "-o", destination)
    return [source, destination]


MAKERS = {16: sixteen, 4096: thousands}


@pytest.fixture(scope="session", params=MAKERS, ids=lambda ranks: f"{ranks}_ranks")
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, pathlib.Path]:
    folder = tmp_path_factory.mktemp(f"page_{request.param}")
    plan, path = folder / "plan", folder / "page.html"
    weightsync("plan", *MAKERS[request.param](folder), "-o", plan)
    weightsync("explain", plan, "--html", path)
    return request.param, path


@pytest.fixture(scope="session")
def shown(page: tuple[int, pathlib.Path]) -> Shown:
    return show(page[1])


def colour_at(shown: Shown, mark: Mark) -> tuple[int, ...]:
    """A quarter from the left and from the bottom, where no text or line is."""
    x = mark.left + (mark.right - mark.left) / 4
    y = mark.bottom - (mark.bottom - mark.top) / 4
    return shown.picture.getpixel((int(x), int(y)))


def plain(marks: list[Mark]) -> list[Mark]:
    """Marks that are large enough, and opaque."""
    def is_large(m: Mark) -> bool:
        return min(m.right - m.left, m.bottom - m.top) >= MARK_PIXELS_MIN
    return [m for m in marks if is_large(m) and "pale" not in m.kind]


def near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(abs(x - y) <= 3 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("chart", CHARTS)
def test_marks_have_their_colours(shown: Shown, chart: str) -> None:
    marks = plain(shown.drawings[chart])
    assert len(marks) >= 8, f"{len(marks)} marks in {chart}"
    assert (0, 0, 0) not in {m.fill for m in marks}, "a mark has a class that the style sheet lacks"
    off = [m for m in marks if not near(colour_at(shown, m), m.fill)]
    # The dashed line of the bound crosses some.
    assert len(off) <= len(marks) / 20, f"{len(off)} of {len(marks)}, such as {off[0]}"


def test_the_matrix_has_shades_and_room(page: tuple[int, pathlib.Path], shown: Shown) -> None:
    marks = shown.drawings["traffic matrix"]
    # The plan of many ranks is even.
    assert len({m.fill for m in marks}) >= (3 if page[0] == 16 else 1), "all cells look alike"
    assert len(marks) < 64 * 64 / 4, "who does not send leaves no mark"
    assert min(m.right - m.left for m in marks) >= 6, "cells are too small to see"
    assert len({m.left for m in marks}) <= 64 and len({m.top for m in marks}) <= 64


def test_the_timeline_has_a_row_for_everybody_and_fits_a_screen(shown: Shown) -> None:
    marks = shown.drawings["timeline"]
    rows = {round(m.top) for m in marks}
    assert 16 <= len(rows) <= 64, "two lanes a row"
    assert max(m.bottom for m in marks) - min(m.top for m in marks) < 900
    steps = {m.kind for m in marks}
    assert len(steps) > 2, f"steps look alike: {steps}"


@pytest.mark.parametrize("width", [1200, 700])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_and_nothing_is_complained_of(
    page: tuple[int, pathlib.Path], width: int, dark: bool
) -> None:
    at = show(page[1], width, dark)
    assert at.scroll_width <= at.width, "the page is wider than its window"
    assert at.spills == []
    assert at.collisions == [], "texts lie over each other"
    assert at.console == []
    is_dark = sum(at.ground) < 3 * 64
    assert is_dark == dark, at.ground
    assert near(at.picture.getpixel((2, 2)), at.ground)


def test_the_page_is_a_file_that_a_browser_likes(page: tuple[int, pathlib.Path]) -> None:
    assert page[1].stat().st_size < 2_000_000


def test_the_picture_of_the_docs_is_there(page: tuple[int, pathlib.Path], shown: Shown) -> None:
    committed = PICTURES / f"plan_{page[0]}.png"
    if os.environ.get("WSYNC_BLESS") == "1":
        lower = int(shown.sections["Timeline"][3]) + 16
        picture = shown.picture.crop((0, 0, shown.width, lower))
        picture.quantize(128, dither=0).save(committed, optimize=True)
    assert committed.stat().st_size < PICTURE_BYTES_MAX
