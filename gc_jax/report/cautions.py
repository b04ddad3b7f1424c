"""What a reader must know before the numbers: at the head of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gc_jax.attribution import CONTROLS, title_of
from gc_jax.method.compose import MODES
from gc_jax.method.metrics import METRICS, Key
from gc_jax.report import describe, rows
from gc_jax.report.artefact import Evaluated, number
from gc_jax.runtime.messages import number_of

_MANY_MASKED = 1 / 3  # of all pairs in training


def cautions(evaluated: Evaluated) -> list[str]:
  """Returns what makes the numbers mean less than they seem, sentences."""
  found = [
    unfinished(evaluated),
    _validation(evaluated),
    _skipped(evaluated),
    without_objects(evaluated),
    masked_pairs(
      evaluated.training, evaluated.about.trained_with("compose.mode")
    ),
    *(
      f"{title_of(name)} is left out. {why}"
      for name, why in evaluated.about.left_out.items()
    ),
  ]
  return [sentence for sentence in found if sentence]


def unfinished(evaluated: Evaluated) -> str:
  """Returns how far training had come, if it had not ended."""
  about = evaluated.about
  step, total = about.step, about.total_steps
  if evaluated.is_run and not evaluated.results:
    step, total = progress(evaluated.training, about.trained)
  if not 0 < step < total:
    return ""
  return (
    f"This run is unfinished: step {step:,} of {total:,}. Its numbers are not "
    "those of the finished run."
  )


def progress(
  training: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> tuple[int, int]:
  """Returns the last logged step of a run and how many it has; 0 if unknown.

  Args:
    training: the lines of metrics.jsonl.
    config: of the run, nested.
  """
  num_epochs = config.get("num_epochs")
  for line in reversed(training):
    step, epoch = line.get("step"), line.get("epoch")
    if step and epoch and num_epochs:
      return int(step), max(1, round(num_epochs * step / epoch))
  return 0, 0


def _validation(evaluated: Evaluated) -> str:
  about = evaluated.about
  if not about.on_validation:
    return ""
  return (
    f"These pictures (split {about.split}) are the validation split of "
    "training, which chose the best checkpoint, and perhaps settings: new "
    "pictures may score lower. Keep a test split apart for a number to report."
  )


def _skipped(evaluated: Evaluated) -> str:
  words = {
    "data/skipped_eval": ("picture", "could not be read and does not count"),
    "data/dropped_eval": ("annotation", "was wrong and left out"),
    "data/skipped_train": ("picture", "was passed over in training"),
    "data/dropped_train": ("annotation", "of training was left out"),
  }
  parts = []
  for key, (noun, what) in words.items():
    count = round(number(evaluated.results, key) or 0)
    if count == 1:
      parts.append(f"1 {noun} {what}")
    elif count:
      what = what.replace("does not", "do not").replace("was", "were")
      parts.append(f"{number_of(count, noun)} {what}")
  return f"{'; '.join(parts)}." if parts else ""


def masked_pairs(
  training: Sequence[Mapping[str, Any]], mode: str | None
) -> str:
  """Returns what to do about masked pairs, if they are more than a third.

  Args:
    training: lines of metrics.jsonl, or what will be.
    mode: how composites were made, a key of `compose.MODES`.
  """
  fracs = [
    frac
    for line in training
    if (frac := line.get("train/masked_pairs_frac")) is not None
  ]
  masked = sum(fracs) / len(fracs) if fracs else 0.0
  if masked <= _MANY_MASKED:
    return ""
  advice = MODES[mode].if_masked if mode in MODES else ""
  return (
    f"{masked:.0%} of the pairs of picture and class are masked in the "
    "consistency loss, because other pictures of their composites show the "
    f"class: it learns from the rest alone. {advice}"
  ).strip()


def without_objects(evaluated: Evaluated) -> str:
  """Returns why metrics that need objects are absent, if they are."""
  if evaluated.number(Key("num_pairs")) != 0:
    return ""
  titles = [one.title for one in METRICS.values() if one.needs_objects]
  return (
    "No picture of this split has a mask or a box. What needs to know where "
    f"objects are was not measured: {', '.join(titles)}."
  )


def below_controls(models: Mapping[str, Sequence[Evaluated]]) -> list[str]:
  """Returns which maps do worse than maps that look at nothing, sentences.

  One for each control, however many metrics and methods: the numbers stand in
  the table. Of several seeds, their mean is held against the control.
  """
  sentences = []
  for control in CONTROLS:
    metrics: dict[str, list[str]] = {}  # by the maps that do worse in them
    for metric, facts in METRICS.items():
      if facts.is_of_maps and facts.higher_is_better is not None:
        for limit, maps in _worse_than(models, metric, control).items():
          metrics.setdefault(maps, []).append(f"{facts.title} ({limit:.1f})")
    if metrics:
      parts = [f"in {', '.join(m)} than {maps}" for maps, m in metrics.items()]
      sentences.append(
        f"{title_of(control)}, a map that looks at nothing, does better: "
        f"{'; '.join(parts)}."
      )
  return sentences


def _worse_than(
  models: Mapping[str, Sequence[Evaluated]], metric: str, control: str
) -> dict[float, str]:
  """Returns number of the control -> words for the maps that do worse."""
  worse: dict[float, list[str]] = {}
  count = 0
  for label, members in models.items():
    for method in members[0].about.methods:
      value = _mean(members, Key(metric, method))
      is_on_fewer = _is_on_fewer(members[0], metric, method)
      limit = (
        _mean_beside(members, Key(metric, control), method)
        if is_on_fewer
        else _mean(members, Key(metric, control))
      )
      if value is None or limit is None:
        continue
      count += 1
      ours, theirs = round(value, 1), round(limit, 1)
      is_higher = ours > theirs
      if ours != theirs and is_higher != METRICS[metric].higher_is_better:
        of = f" of {label}" if len(models) > 1 else ""
        of += " on its fewer pairs" if is_on_fewer else ""
        worse.setdefault(theirs, []).append(f"{title_of(method)}{of}")
  return {
    limit: "all maps" if len(maps) == count > 1 else ", ".join(maps)
    for limit, maps in worse.items()
  }


def _is_on_fewer(evaluated: Evaluated, metric: str, method: str) -> bool:
  """Returns whether a method had fewer pairs than controls in a metric."""
  return (
    method in evaluated.about.costly_methods
    and not METRICS[metric].is_costly
    and bool(describe.fewer_pairs(evaluated))
  )


def _mean_beside(
  members: Sequence[Evaluated], key: Key, method: str
) -> float | None:
  """Returns a control's number over the pairs that a method was measured on."""
  own = key._replace(method=method)
  found, _ = rows.of_seeds(members, [own, key])
  means = []
  for one, evaluated in zip(found or (), members, strict=False):
    if not {own, key} <= one.columns.keys() or np.isnan(one.columns[own]).all():
      return None
    values = np.where(np.isnan(one.columns[own]), np.nan, one.columns[key])
    protocol = evaluated.about.protocol
    num_classes = len(evaluated.class_names)
    sample = rows.sample(key.metric, values, one, protocol, num_classes)
    means.append(100 * rows.mean(sample))
  return sum(means) / len(means) if means else None


def _mean(members: Sequence[Evaluated], key: Key) -> float | None:
  values = [v for one in members if (v := one.number(key)) is not None]
  return sum(values) / len(values) if values else None


def differing_methods(
  models: Mapping[str, Sequence[Evaluated]],
) -> dict[str, str]:
  """Returns method to a sentence, where models computed it in several ways.

  Evaluations of before that was recorded say nothing, and are named as such.
  """
  found = {}
  every = [one for members in models.values() for one in members]
  names = dict.fromkeys(m for one in every for m in one.about.methods)
  for method in names:
    ways: dict[str, list[str]] = {}
    for label, members in models.items():
      settings = [one.about.method_settings.get(method) for one in members]
      is_mixed = any(own != settings[0] for own in settings)
      for one in members:
        if method in one.about.methods:
          own = one.about.method_settings.get(method)
          words = ", ".join(f"{k}={v}" for k, v in (own or {}).items())
          name = f"{label}, {one.folder.name}" if is_mixed else label
          ways.setdefault(words, []).append(name)
    if len(ways) > 1:
      listed = "; ".join(
        f"{words or 'unknown, as an older version did not record it'} "
        f"({', '.join(dict.fromkeys(labels))})"
        for words, labels in ways.items()
      )
      found[method] = (
        f"{title_of(method)} was computed in several ways, and its rows do not "
        f"compare: {listed}."
      )
  return found
