"""What a reader must know before the numbers."""

import dataclasses

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
