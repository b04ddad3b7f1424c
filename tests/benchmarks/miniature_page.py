"""The page of the miniature experiments, made from their runs' own files."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL.Image

from configs import miniature as recipe
from gc_jax import data
from gc_jax.report import (
  artefact,
  claims,
  comparison,
  describe,
  differences,
  formats,
  logs,
  paper,
  pictures,
  tables,
)
from gc_jax.report.artefact import Evaluated
from gc_jax.report.tables import Table
from gc_jax.runtime import files
from tests.benchmarks import miniature_charts
from tests.benchmarks.miniature_charts import METHOD, Models

# Ours to those of the paper whose rows stand beside them.
STANDS_FOR = {
  "alexnet-small": "alexnet",
  "resnet8-small": "resnet18",
  "resnet11-small": "resnet50",
}
# What is kept of a comparison, beside the page.
_KEPT = ("tables.md", "tables.csv", "differences.json")
_FIGURE = "figure.jpg"
SHOWN = "shown.jpg"  # at the head of the README
_NUM_SHOWN = 4
REMARKS = "remarks.md"  # what people make of it; the page takes it in
_INTRODUCTION = """\
# The paper's experiments in small

{finished} of {total} runs are finished{took}. What is not measured is empty,
and says so. Recipe: [configs/miniature.py]({root}configs/miniature.py). One
command makes all runs, and this page:

```
python -m tests.benchmarks.miniature --out={out} --small
```

Numbers are mean ± standard deviation over seeds, of 1,000 test pictures, on
half of which the background follows the class, as in training; the
[glossary]({root}gc_jax/docs/glossary.md) says what they mean. Accuracy is
top-1, and F1-Overall on `multi`, whose pictures show two or three digits.

{recipes}
λ is the weight of the consistency loss, a mean over a map's cells, beside a
classification loss of weight 1, on `multi` {multi_weight:g}.
"""


def write(out: Path, sets, questions, experiments) -> None:
  """Writes the page and its figures.

  Args:
    out: with a folder for each run.
    sets: name to the cells of its tables, the first the plain one.
    questions: `miniature.Question`s.
    experiments: all there may be.
  """
  runs: dict[str, list[Evaluated]] = {}
  secs = []
  for one in experiments:
    if (took := one.secs(out)) is not None:
      runs.setdefault(one.cell, []).append(
        artefact.load_finished(out / one.name)
      )
      secs.append(took)
  took = f", in {logs.format_secs(sum(secs))} of computing" if secs else ""
  parts = [
    _INTRODUCTION.format(
      finished=len(secs),
      total=len(experiments),
      took=took,
      root=_root(out),
      out=out.name if out.is_absolute() else out,
      recipes=_recipes(),
      multi_weight=recipe.get_config(
        "multi-resnet-gc"
      ).loss.classification_weight,
    )
  ]
  if (out / REMARKS).exists():
    parts.append((out / REMARKS).read_text(encoding="utf-8"))
  of_sets = {
    name: [one for cell in cells for one in runs.get(cell, [])]
    for name, cells in sets.items()
  }
  measured = {name: own for name, own in of_sets.items() if own}
  tested = claims.to_markdown(claims.tested(measured))
  parts += ["## The paper's claims\n", tested]
  asked = [_models(one.cells, runs) for one in questions]
  made = [_layouts(own) for own in measured.values()]
  made += [
    _answers(models, one.methods)
    for models, one in zip(asked, questions, strict=True)
  ]
  # A note stands below the first table it is of.
  titles = [*measured, *(one.title for one in questions)]
  words = dict(zip(titles, formats.for_page(made), strict=True))
  for name, own in of_sets.items():
    parts.append(_of_set(out, name, own, words.get(name, [])))
  parts.append("## What the paper leaves open\n")
  of_backgrounds: dict[str, dict[int, Models]] = {}
  for one, models in zip(questions, asked, strict=True):
    parts.append(_of_question(out, one, models, words[one.title]))
    if one.background is not None and models:
      pictures_of, _, _ = one.cells[0][0].partition("-")
      of_backgrounds.setdefault(pictures_of, {})[one.background] = models
  for name, found in of_backgrounds.items():
    path = out / f"of_questions/{name}-backgrounds.png"
    title = miniature_charts.backgrounds(path, found)
    parts.append(f"![{title}, {name}]({path.relative_to(out)})\n")
  text = "\n".join(part.rstrip() + "\n" for part in parts)
  files.write_text(out / "README.md", text)
  pictured = [one for own in of_sets.values() for one in own if one.examples]
  if pictured:
    _show(out / SHOWN, pictured)


def _show(path: Path, evaluations: Sequence[Evaluated]) -> None:
  """Draws a few photographs as each model sees them, for the README.

  They are the first of those that every run shows, whatever the maps.
  """
  of = {describe.paper_names(one.about)[0]: one for one in evaluations}
  names = ["plain" if name == "Baseline" else name for name in of]
  first = next(iter(of.values()))
  found = [
    {
      (one.index, one.target): one
      for one in each.examples
      if one.kind == "fixed"
    }
    for each in of.values()
  ]
  lines = []
  for key, own in list(found[0].items())[:_NUM_SHOWN]:
    cells = [
      pictures.explained(one[key], one[key].maps[METHOD]) for one in found
    ]
    shown = [pictures.outlined(own), *cells]
    lines.append((first.class_name(own.target), shown))
  _save_photographs(path, pictures.draw_grid(["picture", *names], lines))


def _save_photographs(path: Path, png: bytes) -> None:
  """Writes a figure of photographs, as a JPEG, which is much smaller."""
  drawn = PIL.Image.open(io.BytesIO(png)).convert("RGB")
  with files.replacing(path) as file:
    drawn.save(file, "JPEG", quality=88)


def _recipes() -> str:
  """Returns what the sets and their networks are, as a GitHub table."""
  lines = [
    [
      *("set", "pictures", "network", "epochs", "lr per 256"),
      *("λ of GC", "λ of GMP+GC"),
    ]
  ]
  for name in recipe.SETS:
    for architecture, rows in recipe.ROWS.items():
      of = {
        row: recipe.get_config(f"{name}-{architecture}-{row}") for row in rows
      }
      plain = of["ce"]
      lambdas = (
        f"{of[row].loss.consistency_weight:g}" if row in of else ""
        for row in ("gc", "gmp_gc")
      )
      lines.append(
        [
          f"`{name}`",
          data.title(plain.data.name),
          describe.architecture_title(plain.model.name),
          f"{plain.num_epochs:g}",
          f"{plain.optim.lr_per_256:g}",
          *lambdas,
        ]
      )
  lines.insert(1, ["---"] * len(lines[0]))
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _root(out: Path) -> str:
  """Returns the way from the page to the repository, where it lies in it."""
  root = Path(__file__).parents[2].resolve()
  own = out.resolve()
  if own.is_relative_to(root):
    return "../" * len(own.relative_to(root).parts)
  return ""


def _layouts(evaluations: Sequence[Evaluated]) -> list[tables.Table]:
  """Returns the paper's tables of one set."""
  models = describe.group(evaluations)
  made = paper.make_layouts(models, STANDS_FOR)
  return differences.settle(models, [made]).groups[0]


def _of_set(
  out: Path, name: str, evaluations: Sequence[Evaluated], words
) -> str:
  """Returns what is to be said of one set; writes its files into a folder."""
  if not evaluations:
    return f"## {name}\n\nNot measured.\n"
  folder = out / f"of_{name}"
  folder.mkdir(exist_ok=True)
  with tempfile.TemporaryDirectory() as compared:
    comparison.compare([one.folder for one in evaluations], compared)
    pictured = any(one.examples for one in evaluations)
    for each in _KEPT:
      path = Path(compared, each)
      if path.exists():
        (folder / each).write_bytes(path.read_bytes())
    if pictured:
      figure = Path(compared, "figure.png").read_bytes()
      _save_photographs(folder / _FIGURE, figure)
  models = describe.group(evaluations)
  title = miniature_charts.points(folder / "points.png", models, name)
  parts = [f"## {name}\n", *map(_rendered, words)]
  parts.append(f"![{title}](of_{name}/points.png)\n")
  if (folder / _FIGURE).exists():
    parts.append(f"![The same pictures by every model](of_{name}/{_FIGURE})\n")
  listed = ", ".join(
    f"[{each}](of_{name}/{each})" for each in _KEPT if (folder / each).exists()
  )
  return "\n".join([*parts, f"All that was measured: {listed}.\n"])


def _rendered(table: formats.TableText) -> str:
  text = formats.render("tables.md", tables=[table], preface="")
  return f"#### {table.title}\n\n{text}" if table.title else text


def _models(
  cells: Sequence[tuple[str, str]], runs: Mapping[str, list[Evaluated]]
) -> dict[str, list[Evaluated]]:
  """Returns label to the runs of cells, of the seeds that all of them have.

  Empty unless there are the first and another.

  Args:
    cells: each with its label.
    runs: of every cell.
  """
  found = {label: runs[cell] for cell, label in cells if runs.get(cell)}
  if cells[0][1] not in found or len(found) < 2:
    return {}
  of = lambda one: one.about.trained_with("seed")
  common = set.intersection(*({of(o) for o in own} for own in found.values()))
  return {
    name: [one for one in own if of(one) in common] or own
    for name, own in found.items()
  }


def _answers(models: Models, methods: Sequence[str]) -> list[Table]:
  """Returns what cells score, and how they differ from the first.

  Args:
    models: label to evaluations.
    methods: by whose maps they are compared.
  """
  if not models:
    return []
  whole = tables.overview(models)
  kept = [row for row in whole.rows if row.method in methods]
  wanted = differences.from_first(models, *methods)
  settled = differences.settle(models, [[Table(whole.columns, kept)]], wanted)
  made = settled.groups[0]
  if differing := differences.table(models, methods, settled.found):
    made.append(differing)
  return made


def _of_question(out: Path, question, models: Models, words) -> str:
  named = ", ".join(f"`{cell}`" for cell, _ in question.cells)
  parts = [f"### {question.title}\n", f"Cells, in this order: {named}.\n"]
  lacking = [label for _, label in question.cells if label not in models]
  if lacking:
    parts.append(
      f"Not measured, or not yet to compare: {', '.join(lacking)}.\n"
    )
  if models:
    parts += map(_rendered, words)
    path = out / f"of_questions/{question.cells[-1][0]}.png"
    path.parent.mkdir(exist_ok=True)
    if question.background is None:
      title = miniature_charts.points(
        path, models, question.title, in_order=question.in_order
      )
      parts.append(f"![{title}]({path.relative_to(out)})\n")
    path = path.with_stem(f"{path.stem}-gradients")
    if title := miniature_charts.gradients(path, models):
      parts.append(f"![{title}]({path.relative_to(out)})\n")
  return "\n".join(parts)
