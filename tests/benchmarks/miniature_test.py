"""The miniature experiments: every cell is a recipe; the page says what is."""

import collections
import re

import pytest

from configs import miniature as recipe
from gc_jax.report import artefact
from gc_jax.runtime.config import flatten
from tests.benchmarks import miniature, miniature_charts, miniature_page
from tests.report import evaluations


def test_every_cell_is_a_variant_and_every_variation_changes_known_fields():
  assert sorted(miniature.CELLS) == sorted(recipe.VARIANTS)
  made = miniature.every_experiment()
  assert len({one.name for one in made}) == len(made) >= 200
  seeds = collections.Counter(one.cell for one in made)
  assert seeds["objects-resnet-gc"] == seeds["digits-alexnet-ce"] == 5
  assert seeds["objects-bottleneck-ce"] == seeds["multi-resnet-gc"] == 3
  assert {seeds[name] for name in miniature.VARIATIONS} == {3}
  known = flatten(recipe.get_config().to_dict())
  for one in made:
    variant, *flags = one.arguments
    recipe.get_config(variant.partition(":")[2])
    for flag in flags:
      assert re.match(r"--config\.([\w.]+)=", flag)[1] in known
  cells = {*miniature.CELLS, *miniature.VARIATIONS}
  asked = [cell for one in miniature.QUESTIONS for cell, _ in one.cells]
  assert {*miniature.VARIATIONS} <= {*asked} <= cells
  # The first seed of every cell of the tables comes before the second of any.
  first = [one.cell for one in made[: len(miniature.CELLS)]]
  assert tuple(first) == miniature.CELLS
  assert all(cell.startswith("digits-resnet-") for cell in first[:4])


@pytest.fixture
def out(tmp_path):
  """Finished runs of two cells, and of a question, over two seeds."""
  for seed in (0, 1):
    for cell, ch, fields in (
      ("digits-resnet-ce", 15.0, {"loss__consistency_weight": 0.0}),
      ("digits-resnet-gc", 20.0, {"loss__consistency_weight": 75.0}),
      ("digits-independent", 21.0, {"compose__mode": "independent"}),
    ):
      norms = {"classification": 0.5, "consistency": 0.1 * (1 + seed)}
      if cell.endswith("-ce"):
        norms.pop("consistency")
      named = {f"train/grad_norm_features/{k}": v for k, v in norms.items()}
      evaluations.write_run(
        tmp_path / f"{cell}_{seed}",
        ch,
        training=[{"step": step, **named} for step in (1, 100)],
        seed=seed,
        model__name="resnet8-small",
        **fields,
      )
  return tmp_path


def test_the_page_has_what_is_measured_and_says_what_is_not(out, monkeypatch):
  (out / miniature_page.REMARKS).write_text("It came out as expected.\n")
  monkeypatch.setattr(
    "sys.argv", ["miniature", f"--out={out}", "--page", "--seeds", "0"]
  )
  miniature.main()
  page = (out / "README.md").read_text()
  total = len(miniature.every_experiment())
  assert f"6 of {total} runs are finished, in 17m 48s of computing." in page
  assert "It came out as expected." in page
  assert "## objects\n\nNot measured." in page
  # Our rows, over both seeds, beside those of the network they stand for.
  assert "| ResNet8-small GC | Grad-CAM, element-wise | 2 |" in page
  assert "20.00 ± 0.00" in page
  assert re.search(r"paper: ResNet18 GC .*57\.73", page)
  assert "paper: ResNet50" not in page
  assert re.search(
    r"\| 14 \| GC has a higher CH than Baseline .* \| too few runs \|", page
  )
  assert re.search(r"\| 32 \| .* \| not measured \|", page)
  question = page.partition("### `packed` or `independent` composites, digits")
  question = question[2].partition("###")[0]
  assert "Cells, in this order: `digits-resnet-gc`, `digits-inde" in question
  assert "| independent | Grad-CAM, element-wise | 2 |" in question
  links = re.findall(r"\]\((of_[^)]+)\)", page)
  assert all((out / link).exists() for link in links)
  assert (out / miniature_page.SHOWN).read_bytes().startswith(b"\xff\xd8")
  # Of the two that were trained with the loss; both seeds count.
  assert "of_questions/digits-independent-gradients.png" in links
  run = artefact.load_finished(out / "digits-resnet-gc_0")
  other = artefact.load_finished(out / "digits-resnet-gc_1")
  assert miniature_charts.shares([run, other]) == pytest.approx(
    {1: 0.3, 100: 0.3}
  )
  before = {path: path.read_bytes() for path in out.rglob("*.md")}
  miniature.main()
  assert before == {path: path.read_bytes() for path in out.rglob("*.md")}
