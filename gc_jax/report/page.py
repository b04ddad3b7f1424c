"""report.html: one page that says what a model scores and its maps look at.

Of a run, finished or not, and of an evaluation: the same page, without what
was not asked. Beside it, tables and figures as files.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gc_jax.attribution import title_of
from gc_jax.method.metrics import ATTACKS, METRICS, Key, Metric
from gc_jax.report import (
  artefact,
  cards,
  cautions,
  charts,
  classes,
  describe,
  differences,
  formats,
  gallery,
  logs,
  paper,
  pictures,
  plots,
  tables,
)
from gc_jax.report.artefact import Evaluated
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files

FILENAME = "report.html"
FILENAMES = (  # that `write_evaluation` may write
  FILENAME,
  *("tables.md", "tables.csv", "tables.tex"),
  *("figure_methods.png", "curves.png", "robustness.png", "insertion.png"),
  *("deletion.png", "randomization.png", "sanity.png"),
)
METHOD = "gradcam_elementwise"  # what training makes consistent (paper, eq. 3)


def write_report(
  folder: str | os.PathLike, baseline: str | os.PathLike | None = None
) -> files.AnyPath:
  """Writes report.html, a page that needs no other file; returns its path.

  Args:
    folder: a run, finished or not, or an evaluation: what is missing is left
      out.
    baseline: a finished one on the same data, to compare with: its rows in
      the tables, changes in the headline numbers, maps side by side.

  Raises:
    ValueError: a folder is neither, or the baseline is unfinished or was
      evaluated on other data or in another way.
  """
  evaluated = artefact.load(folder)
  other = None if baseline is None else artefact.load_finished(baseline)
  if other is not None:
    describe.check_comparable([evaluated, other])
  drawn, strip = charts.charts(evaluated), charts.sanity_figure(evaluated)
  models, other_label = _models(evaluated, other)
  tested = _tested(models)
  html = _page(
    evaluated, other, models, other_label, tested, drawn, strip, [FILENAME]
  )
  return write_files(evaluated.folder, {FILENAME: html}, ())[0]


def write_evaluation(evaluated: Evaluated) -> list[files.AnyPath]:
  """Writes the page, tables and figures beside the evaluation's own files.

  A figure without numbers is left out, and removed where an earlier evaluation
  left it. Returns the paths written, the page first.
  """
  models = describe.group([evaluated])
  tested = _tested(models)
  _, layouts, measured, plain = tested.groups
  drawn, strip = charts.charts(evaluated), charts.sanity_figure(evaluated)
  contents = {
    FILENAME: b"",
    **formats.to_files(
      [*layouts, *plain, *measured], describe.protocol(evaluated.about)
    ),
    "figure_methods.png": charts.methods_figure(evaluated),
    "curves.png": plots.stack(list(drawn.values())) if drawn else None,
    **{f"{name}.png": chart.png for name, chart in drawn.items()},
    "sanity.png": strip,
  }
  contents = {k: v for k, v in contents.items() if v is not None}
  contents[FILENAME] = _page(
    evaluated, None, models, "", tested, drawn, strip, list(contents)
  )
  return write_files(evaluated.folder, contents, FILENAMES)


def write_files(
  folder: files.AnyPath, contents: Mapping[str, bytes], known: Sequence[str]
) -> list[files.AnyPath]:
  """Writes files, each completely or not at all; returns their paths.

  Args:
    folder: made where missing.
    contents: by name.
    known: names that go if there is no content for them: an earlier report's.
  """
  for name in set(known) - contents.keys():
    (folder / name).unlink(missing_ok=True)
  for name, content in contents.items():
    with files.replacing(folder / name) as file:
      file.write(content)
  return [folder / name for name in contents]


def _tested(models: tables.Models) -> differences.Settled:
  """Returns tables at a glance, the paper's, all, and the first for files.

  With two models their difference is tested as well, the second's from the
  first's.
  """
  groups = [
    [tables.overview(models, interval=True)],
    paper.make_layouts(models),
    tables.measured(models),
    [tables.overview(models)],
  ]
  method = headline_method(tables.first(models))
  return differences.settle(
    models, groups, differences.from_first(models, method)
  )


def _page(
  evaluated: Evaluated,
  other: Evaluated | None,
  models: tables.Models,
  other_label: str,
  tested: differences.Settled,
  drawn: Mapping[str, plots.Chart],
  strip: bytes | None,
  written: Sequence[str],
) -> bytes:
  """Returns report.html, beside which `written` are written.

  `drawn` and `strip` are the `charts.charts` and `charts.sanity_figure`.
  """
  about = evaluated.about
  groups = tested.groups[:3] if evaluated.results else [[], [], []]
  glance, paper_tables, full_tables = formats.for_page(groups)
  method = headline_method(evaluated)
  pairs = [] if other is None else cards.pairs(evaluated, other)
  pairs_rows = classes.read_rows(evaluated, method)
  num_classes = len(evaluated.class_names)
  counts = None
  if pairs_rows is not None:
    counts = classes.confusion(pairs_rows, num_classes)
  html = formats.render(
    "report.html",
    evaluated=evaluated,
    name=evaluated.folder.resolve().name,
    title=describe.label(about),
    data_name=describe.data_title(about),
    sentence=describe.sentence(about),
    cautions=[
      *cautions.cautions(evaluated),
      *cautions.differing_methods(models).values(),
      *differences.remarks(models, tested.whys),
    ],
    ranking=gallery.RANKINGS.get(about.ranked_by),
    ranked_method=title_of("".join(about.methods[:1])),
    has_outlines=any(e.object_mask.any() for e in evaluated.examples),
    protocol=describe.protocol(about),
    headlines=_headlines(evaluated, other, models, tested.found),
    count=evaluated.number(Key("num_examples")),
    uniform=evaluated.number(Key("content_heatmap", "uniform")),
    center=evaluated.number(Key("pointing_game", "center")),
    tolerance=describe.tolerance(about),
    method=title_of(method),
    is_trained_method=method == METHOD,
    other_label=other_label,
    other_sentence=describe.sentence(other.about) if other else "",
    glance=glance,
    paper_tables=paper_tables,
    full_tables=full_tables,
    training_charts=charts.training_charts(evaluated.training),
    not_finite=charts.count_not_finite(evaluated.training),
    charts=drawn,
    sanity=charts.sanity(evaluated),
    threshold=f"{charts.STAYS_HIGH:g}",
    sanity_figure=strip and pictures.figure_layer(strip),
    sanity_example=charts.sanity_example(evaluated),
    gallery=_gallery(evaluated, skips_fixed=bool(pairs)),
    methods=[
      (m, title_of(m))
      for m in tables.in_order(
        [
          *evaluated.about.methods,
          *(m for e in evaluated.examples for m in e.maps),
        ]
      )
    ],
    kinds={example.kind for example in evaluated.examples},
    has_composites=any(e.composite is not None for e in evaluated.examples),
    pairs=pairs,
    color_bar=pictures.color_bar(),
    scaling=pictures.SCALING,
    findings=(
      classes.findings(pairs_rows, method, num_classes) if pairs_rows else []
    ),
    is_by_class=pairs_rows is not None,
    rule=classes.RULE,
    # The headline method first.
    classes=classes.table(
      evaluated, pairs_rows, sorted(about.methods, key=lambda m: m != method)
    ),
    confusion=(
      counts.tolist()
      if counts is not None and num_classes <= classes.MAX_MATRIX
      else None
    ),
    mistakes=[] if counts is None else classes.mistakes(counts),
    telling_mistakes=(
      [] if counts is None else classes.telling_mistakes(counts)
    ),
    costly=_costly(evaluated),
    sanity_rows=describe.setting(about, "sanity_rows"),
    empty_maps={
      title_of(m): evaluated.number(Key("zero_map_frac", m))
      for m in about.methods
    },
    fewer_pairs=describe.fewer_pairs(evaluated),
    facts=_facts(evaluated),
    settings=about.settings,
    config=saved_config.flatten(about.config),
    written=[
      *written,
      *(
        name
        for name in artefact.FILENAMES
        # What is being saved comes after this page.
        if evaluated.rows is not None or (evaluated.folder / name).is_file()
      ),
    ],
  )
  return html.encode()


def _models(
  evaluated: Evaluated, other: Evaluated | None
) -> tuple[dict[str, list[Evaluated]], str]:
  """Returns label to evaluation, the other first, and the other's label."""
  if other is None:
    return describe.group([evaluated]), ""
  groups = describe.group([other, evaluated])
  label = next(iter(groups))
  if len(groups) == 2:
    return groups, label
  # The same configuration, most likely of another seed.
  both = (other, evaluated)
  endings = [
    [f", seed {one.about.trained_with('seed')}" for one in both],
    [f" ({one.folder.name})" for one in both],
    [" (compared with)", " (this run)"],
  ]
  old, new = next(pair for pair in endings if pair[0] != pair[1])
  return {label + old: [other], label + new: [evaluated]}, label + old


class Headline(NamedTuple):
  """A number in percent, its 95% interval, and its change in points."""

  metric: Metric
  value: float
  interval: tuple[float, float] | None
  change: str = ""  # with its own interval, if that is known; "" for none
  verdict: str = ""  # see `Difference.verdict`, or "not tested"


def headline_method(evaluated: Evaluated) -> str:
  """Returns the method on the tiles: what training made consistent, if any."""
  methods = evaluated.about.methods
  return METHOD if METHOD in methods else "".join(methods[:1])


def _headlines(
  evaluated: Evaluated,
  other: Evaluated | None,
  models: tables.Models,
  tested: differences.Found,
) -> dict[str, Headline]:
  """Returns metric -> its number, with its change from another evaluation."""
  found = {}
  labels = list(models)[::-1]  # the other is the first
  for name, metric in METRICS.items():
    method = headline_method(evaluated) or METHOD
    key = Key(name, method if metric.is_of_maps else "")
    value = evaluated.number(key)
    if value is None:
      continue
    own = Headline(metric, value, evaluated.interval(key))
    before = None if other is None else other.number(key)
    if before is not None:
      # As the reader would subtract, and never -0.
      change = round(round(value, 1) - round(before, 1), 1) + 0.0
      words, verdict = f"{change:+.1f}", differences.NOT_TESTED
      sides = tuple(differences.Side(label, key) for label in labels)
      if one := tested.get(sides):
        words += f" (95% interval {one.low:+.1f} to {one.high:+.1f})"
        verdict = one.verdict(name)
      own = own._replace(change=words.replace("-", "−"), verdict=verdict)
    found[name] = own
  return found


def _gallery(
  evaluated: Evaluated, skips_fixed: bool
) -> dict[str, list[cards.Card]]:
  """Returns kind of example -> cards."""
  by_kind: dict[str, list[cards.Card]] = {}
  for example in evaluated.examples:
    if example.kind != "fixed" or not skips_fixed:
      found = by_kind.setdefault(example.kind, [])
      found.append(cards.card(evaluated, example))
  return by_kind


def _facts(evaluated: Evaluated) -> list[tuple[str, str]]:
  """Returns what was evaluated and what it took, as (name, value)."""
  about = evaluated.about
  of = lambda name: artefact.number(evaluated.results, name)
  found = [
    ("model from", about.source, "{}".format),
    ("architecture", about.architecture, "{}".format),
    ("parameters", of("model/num_params"), "{:,.0f}".format),
    ("updates", of("step"), "{:,.0f}".format),
    ("training took", of("time/train_secs"), logs.format_secs),
    ("images", about.num_images, "{:,}".format),
    ("(image, class) pairs", about.num_pairs, "{:,}".format),
    ("pairs with an object", of("val/num_pairs"), "{:,.0f}".format),
    ("methods", ", ".join(map(title_of, about.methods)), "{}".format),
    ("programs compiled", about.num_compilations, "{:,}".format),
    ("evaluation took", of("time/eval_secs") or about.secs, logs.format_secs),
  ]
  return [(title, write(value)) for title, value, write in found if value]


def _costly(evaluated: Evaluated) -> list[str]:
  """Returns what was measured of all that is measured on fewer pairs."""
  about = evaluated.about
  metrics = [
    metric.title
    for name, metric in METRICS.items()
    if metric.is_costly
    and any(evaluated.number(Key(name, m)) is not None for m in about.methods)
  ]
  attacks = [
    attack.title
    for name, attack in ATTACKS.items()
    if attack.on_few and name in evaluated.curves.robustness
  ]
  return [*map(title_of, about.costly_methods), *metrics, *attacks]
