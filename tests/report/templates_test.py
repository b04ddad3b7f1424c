"""The pages as Chromium shows, works and prints them."""

import collections
import io
import json
import unicodedata

import numpy as np
import pypdf
import pytest

from gc_jax.report import comparison, page
from tests.report import browser, evaluations

NAMES = ("run", "evaluation", "comparison")


@pytest.fixture(scope="module")
def chromium():
  with browser.started() as found:
    yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """A run with its baseline, an evaluation, a comparison; all with pictures."""
  folder = tmp_path_factory.mktemp("pages")
  off = {"loss__consistency_weight": 0.0}
  baseline = evaluations.write_run(folder / "base", ch=13.0, **off)
  run = evaluations.write_run(folder / "gc", ch=21.4)
  evaluation = evaluations.make(folder / "evaluation")
  (written, *_) = page.write_evaluation(evaluation)
  comparison.compare([baseline, run], folder / "comparison")
  return {
    "run": page.write_report(run, baseline),
    "evaluation": written,
    "comparison": folder / "comparison" / "comparison.html",
  }


def _visible(chromium, selector):
  """Returns how many elements are seen."""
  return chromium.run(
    f"[...document.querySelectorAll({json.dumps(selector)})]"
    ".filter(one => one.offsetParent !== null).length"
  )


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_by_day_and_night_and_asks_for_nothing(
  chromium, pages, name
):
  for width, dark in ((1280, False), (400, True), (400, False), (1280, True)):
    chromium.open(pages[name], width, dark=dark)
    assert chromium.run("document.documentElement.scrollWidth") == width
    assert chromium.errors() == []
    asked = [url[:5] for url in chromium.requests()]
    assert asked.count("file:") == 1 and set(asked) <= {"file:", "data:"}
    background, *texts = chromium.run(
      """["body", "body", ".note", "thead th", "a"].map((query, place) => {
        const style = getComputedStyle(document.querySelector(query));
        const color = place ? style.color : style.backgroundColor;
        return color.match(/[\\d.]+/g).slice(0, 3).map(Number);
      })"""
    )
    assert (np.mean(background) < 64) == dark
    assert min(_contrast(background, text) for text in texts) > 4.5


def _contrast(*colors):
  """Returns the contrast of two colours as WCAG 2 has it."""
  luminances = []
  for color in colors:
    c = np.array(color) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    luminances.append(linear @ [0.2126, 0.7152, 0.0722])
  low, high = sorted(luminances)
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_keep_their_place_and_the_contents_lead_somewhere(
  chromium, pages, name
):
  chromium.open(pages[name])
  off = chromium.run(
    """[...document.images].filter(one => {
      const [width, height] =
        ['width', 'height'].map(name => one.getAttribute(name));
      const ratio = one.naturalWidth / one.naturalHeight;
      return !(Math.abs(ratio - width / height) < 0.02);
    }).length"""
  )
  assert off == 0
  assert chromium.run(
    """[...document.querySelectorAll('.contents a')].length > 2 &&
      [...document.querySelectorAll('a[href^="#"]')].every(link =>
        document.getElementById(link.hash.slice(1)))"""
  )
  assert chromium.run(
    "new Set([...document.querySelectorAll('[id]')].map(one => one.id)).size"
    " === document.querySelectorAll('[id]').length"
  )
  # The contents stay when the page moves.
  chromium.run("window.scrollTo(0, 3000)")
  chromium.settle()
  top = "document.querySelector('.contents').getBoundingClientRect().top"
  assert 0 <= chromium.run(top) < 60
  assert chromium.run("scrollY") > 1000


def test_pictures_and_classes_are_filtered(chromium, pages):
  chromium.open(pages["evaluation"])
  pictures = _visible(chromium, ".example")
  assert pictures == 3 and _visible(chromium, ".classes tbody tr") == 3
  maps = _visible(chromium, ".example figure")
  chromium.choose("[name=right]", "no")
  assert _visible(chromium, ".example") == 2  # 0 and 2 are taken for class 2
  assert _visible(chromium, ".example [class=better]") == 0
  count = "document.querySelector('.count').value"
  assert chromium.run(count) == "2 of 3 pictures"
  chromium.choose("[name=right]", "")
  chromium.choose("[name=class]", "0")
  assert _visible(chromium, ".example") == 0
  assert _visible(chromium, ".classes tbody tr") == 1
  assert _visible(chromium, ".group") == 0
  chromium.choose("[name=class]", "2")  # predicted, if not shown
  assert _visible(chromium, ".example") == 2
  chromium.choose("[name=class]", "")
  chromium.choose("[name=method]", "cmwp")
  assert _visible(chromium, ".example") == 3
  assert _visible(chromium, ".example figure") == 3 * 2  # image and map
  # The table of classes shows that method's numbers.
  shown = "document.querySelector('[data-shown-method]').textContent"
  assert chromium.run(shown) == "cMWP"
  cell = "document.querySelector('#class-1').textContent"
  assert "26.0" in chromium.run(cell) and "30.0" not in chromium.run(cell)
  chromium.click(".controls [type=reset]")
  chromium.run("new Promise(done => setTimeout(done, 50))")
  assert _visible(chromium, ".example figure") == maps
  assert "30.0" in chromium.run(cell)
  assert chromium.errors() == []


def test_tables_are_sorted_by_their_headings(chromium, pages):
  chromium.open(pages["evaluation"])
  box = '.scroll[aria-label="At a glance"]'
  read = (
    f"[...document.querySelectorAll('{box} tbody tr')]"
    ".map(row => row.cells[COLUMN].textContent.trim())"
  )
  column = chromium.run(
    f"[...document.querySelectorAll('{box} thead th')]"
    ".findIndex(one => one.textContent.startsWith('CH'))"
  )
  read = read.replace("COLUMN", str(column))
  first = chromium.run(read)
  head = f"{box} thead th:nth-child({column + 1})"
  button = f"{head} button"
  order = f"document.querySelector('{head}').getAttribute('aria-sort')"
  leading = lambda: [float(x.split("[")[0]) for x in chromium.run(read) if x]
  chromium.click(button)
  assert chromium.run(order) == "descending"
  assert leading() == sorted(leading(), reverse=True) and len(leading()) > 9
  chromium.press("Enter", 13)  # it has the focus
  assert chromium.run(order) == "ascending"
  assert leading() == sorted(leading())
  chromium.press("Enter", 13)
  assert chromium.run(order) is None and chromium.run(read) == first
  # Names, by the alphabet and numbers in them; what is empty stays below.
  top1 = f"{box} thead th:nth-child(3) button"
  for _ in range(2):
    chromium.click(top1)
    values = chromium.run(read.replace(f"[{column}]", "[2]"))
    assert values[-2:] == ["", ""] and values[0] != ""  # the controls
  assert chromium.errors() == []


def test_a_picture_is_enlarged_by_mouse_and_keys(chromium, pages):
  chromium.open(pages["run"])
  is_open = "document.querySelector('dialog').open"
  caption = "document.querySelector('dialog .caption').textContent"
  chromium.click(".example figure:nth-of-type(2) button.enlarge")
  assert chromium.run(is_open)
  first = chromium.run(caption)
  assert "Before: 16.0%" in first
  wide, high, bottom = chromium.run(
    """(() => {
      const box = document.querySelector('.stage > *').getBoundingClientRect();
      return [box.width, box.height, box.bottom];
    })()"""
  )
  assert 500 < wide == pytest.approx(high, abs=2) and bottom < 900
  image = (
    "getComputedStyle(document.querySelector('.stage > *')).backgroundImage"
  )
  assert chromium.run(image).startswith('url("data:image/png')
  chromium.press("ArrowRight", 39)
  assert "This run: 24.4%" in chromium.run(caption)
  chromium.press("ArrowLeft", 37)
  assert chromium.run(caption) == first
  chromium.press("Escape", 27)
  assert not chromium.run(is_open)
  assert chromium.run("document.activeElement.className") == "enlarge"
  chromium.press("Enter", 13)
  assert chromium.run(is_open) and chromium.run(caption) == first
  chromium.click("dialog [name=close]")
  assert not chromium.run(is_open)
  assert chromium.errors() == []


def test_a_slider_fades_every_map_and_no_picture(chromium, pages):
  for name in NAMES:
    chromium.open(pages[name])
    opacities = (
      "[...new Set([...document.querySelectorAll('img.QUERY')]"
      ".map(one => getComputedStyle(one).opacity))].join()"
    )
    heat, lines = (opacities.replace("QUERY", q) for q in ("heat", "lines"))
    assert chromium.run(heat) == "1"
    chromium.choose(".controls [name=opacity]", "30")
    assert chromium.run(heat) == "0.3" and chromium.run(lines) == "1"
    said = "[...document.querySelectorAll('.opacity output')].map(x => x.value)"
    assert set(chromium.run(said)) == {"30%"}


def test_without_a_script_everything_is_seen(chromium, pages):
  chromium.open(pages["evaluation"])
  counts = [_visible(chromium, q) for q in (".example img", "table", "svg")]
  chromium.open(pages["evaluation"], script=False)
  assert chromium.run("document.querySelector('dialog')") is None
  assert _visible(chromium, ".controls") == 0
  assert counts == [
    _visible(chromium, q) for q in (".example img", "table", "svg")
  ]


def test_a_box_that_scrolls_says_so(chromium, pages):
  chromium.open(pages["evaluation"], width=400)
  told = """[...document.querySelectorAll('.scroll')].filter(box =>
    box.offsetParent !== null &&
    box.scrollWidth > box.clientWidth + 1 !==
    !!(box.previousElementSibling?.matches('.hint:not([hidden])'))).length"""
  assert chromium.run(told) == 0 and _visible(chromium, ".hint") > 2
  chromium.resize(2400)
  chromium.run("new Promise(done => setTimeout(done, 100))")
  assert chromium.run(told) == 0


@pytest.mark.parametrize("name", NAMES)
def test_print_loses_no_column(chromium, pages, name):
  chromium.open(pages[name])
  words = collections.Counter(
    chromium.run(
      """[...document.querySelectorAll('th, td')].flatMap(one =>
        one.innerText.split(/\\s+/))"""
    )
  )
  reader = pypdf.PdfReader(io.BytesIO(chromium.pdf()))
  text, outside = "", []
  for sheet in reader.pages:
    width, height = float(sheet.mediabox.width), float(sheet.mediabox.height)
    assert sorted((width, height)) == pytest.approx([595, 842], abs=2)  # A4

    def look(words, cm, tm, _, size, width=width):
      x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
      scale = abs(tm[0] * cm[0])
      # Letters are at least a third as wide as high.
      if (
        words.strip()
        and not 0 <= x <= width - scale * size * len(words.strip()) / 3
      ):
        outside.append((words, x))

    text += sheet.extract_text(visitor_text=look)
  assert outside == []
  # A font may join two letters in one.
  text = "".join(unicodedata.normalize("NFKC", text).split())
  found = {word: text.count(word) for word in words}
  assert [word for word in words if found[word] < words[word]] == []
  assert chromium.errors() == []
