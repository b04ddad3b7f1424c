"""What a reader must know before the numbers."""

import dataclasses

import numpy as np
import pytest

from gc_jax.attribution import CONTROLS, METHODS, settings_of, title_of
from gc_jax.method.metrics import Key
from gc_jax.report import cautions, differences
from tests.report import evaluations

IG = "integrated_gradients"


def _by_steps(tmp_path, *steps):
  """Two models, whose integrated gradients took so many steps; 0: unknown."""
  return {
    name: [
      evaluations.make(
        tmp_path / name,
        method_settings={IG: {"steps": count}} if count else {},
      )
    ]
    for name, count in zip("ab", steps, strict=True)
  }


@pytest.mark.parametrize(
  "steps, words",
  [
    ((16, 64), "its rows do not compare: steps=16 (a); steps=64 (b)."),
    ((64, 0), "steps=64 (a); unknown, as an older version did not record it"),
    ((64, 64), ""),
    ((0, 0), ""),
  ],
)
def test_methods_computed_otherwise_are_named_and_not_compared(
  tmp_path, steps, words
):
  models = _by_steps(tmp_path, *steps)
  found = cautions.differing_methods(models)
  assert list(found) == [IG] * bool(words)
  assert words in "".join(found.values())
  compared = differences.from_first(models, IG)
  assert any(own.key.method for own, _ in compared) == (not words)


def test_runs_of_one_model_computed_otherwise_are_told_apart(tmp_path):
  (a,), (b,) = _by_steps(tmp_path, 16, 64).values()
  said = cautions.differing_methods({"GC": [a, b]})[IG]
  assert "steps=16 (GC, a); steps=64 (GC, b)." in said


def test_an_evaluation_records_what_its_methods_were_computed_with():
  assert settings_of(METHODS)[IG] == {"steps": 64}
  assert "gradcam" not in settings_of(METHODS)
  fewer = dataclasses.replace(
    METHODS[IG], explain=lambda model, images, targets, *, steps=16: None
  )
  assert fewer.settings == {"steps": 16}


def test_maps_below_a_control_are_told_in_one_sentence_for_each_control(
  tmp_path,
):
  made = evaluations.make(tmp_path / "e")
  for metric in ("pointing_game", "content_heatmap"):
    for method in evaluations.METHODS:
      made.results[f"val/{Key(metric, method).name}"] = 1.0
  found = cautions.below_controls({"": [made]})
  assert len(found) <= len(CONTROLS)
  of_center = [one for one in found if one.startswith(title_of("center"))]
  assert "than all maps" in "".join(of_center)


@pytest.mark.parametrize("of_uniform, is_told", [(0.9, True), (0.1, False)])
def test_a_costly_method_is_held_against_controls_on_its_own_pairs(
  tmp_path, of_uniform, is_told
):
  """Over all pairs, the control would be right where this says wrong."""
  made = evaluations.make(tmp_path / "e", methods=(IG,), costly_methods=(IG,))
  own, control = (Key("content_heatmap", name) for name in (IG, "uniform"))
  of_method = np.full(80, np.nan, np.float32)
  of_method[[3, 50]] = 0.5
  of_control = np.full(80, 1 - of_uniform, np.float32)
  of_control[[3, 50]] = of_uniform
  made.rows.columns.update({own: of_method, control: of_control})
  made.results[f"val/{own.name}"] = 50.0
  made.results[f"val/{control.name}"] = 100 * float(of_control.mean())
  said = " ".join(cautions.below_controls({"": [made]}))
  words = f"CH ({100 * of_uniform:.1f}) than {title_of(IG)} on its fewer pairs"
  assert (words in said) == is_told
  assert ("CH (" in said) == is_told
  # Where it had every pair, the numbers of the tables are held.
  about = dataclasses.replace(made.about, num_costly_images=1200)
  said = " ".join(
    cautions.below_controls({"": [dataclasses.replace(made, about=about)]})
  )
  assert (f"than {title_of(IG)}" in said and "CH (" in said) != is_told
