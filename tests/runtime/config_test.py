"""A folder holds one run: what may change in it, and what is another one."""

import json

import pytest

from configs import quickstart
from gc_jax.runtime import config as saved_config


def make(**overrides):
  config = quickstart.get_config()
  config.update_from_flattened_dict(overrides)
  return config


def test_a_workdir_of_another_run_is_left_alone_and_told_apart(tmp_path):
  path = tmp_path / saved_config.FILENAME
  path.write_text(quickstart.get_config("gmp").to_json_best_effort())
  before = path.read_bytes()
  with pytest.raises(ValueError, match="another configuration") as caught:
    saved_config.check_same_run(quickstart.get_config("gc"), tmp_path)
  text = str(caught.value)
  assert "--config.loss.consistency_weight: 0.0 there, 75.0 now" in text
  assert (
    "--config.model.name: 'resnet8-small-gmp' there, 'resnet8-small' now"
    in text
  )
  assert "data.name" not in text
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  ("text", "found"), [('{"seed": 0', "it is not JSON"), ("[1]", r"it is \[1\]")]
)
def test_what_is_no_configuration_is_told_and_left_alone(tmp_path, text, found):
  path = tmp_path / saved_config.FILENAME
  path.write_text(text)
  with pytest.raises(ValueError, match=rf"config\.json must be .*{found}"):
    saved_config.check_same_run(make(), tmp_path)
  assert path.read_text() == text


def test_where_a_run_happens_may_change(tmp_path):
  path = tmp_path / saved_config.FILENAME
  path.write_text(make().to_json_best_effort())
  moved = make(**{"data.num_workers": 2, "log.every_steps": 7})
  saved_config.check_same_run(moved, tmp_path)


def test_a_run_of_before_a_field_goes_on_with_its_default(tmp_path):
  saved = saved_config.to_dict(make())
  del saved["accumulate_steps"], saved["model"]["bn_group"]
  (tmp_path / saved_config.FILENAME).write_text(json.dumps(saved))
  saved_config.check_same_run(make(), tmp_path)
  with pytest.raises(ValueError, match="accumulate_steps: 1 there, 2 now"):
    saved_config.check_same_run(make(accumulate_steps=2), tmp_path)


def test_a_field_that_is_no_more_is_another_run(tmp_path):
  saved = saved_config.to_dict(make()) | {"forgotten": 3}
  (tmp_path / saved_config.FILENAME).write_text(json.dumps(saved))
  with pytest.raises(ValueError, match="forgotten: 3 there, None now"):
    saved_config.check_same_run(make(), tmp_path)


def test_a_config_survives_being_saved():
  config = quickstart.get_config()
  saved = saved_config.to_dict(config)
  assert saved_config.differences(saved, saved_config.to_dict(config)) == []
  assert saved["optim"]["step_epochs"] == [30, 60]


def test_runs_that_differ_in_fields_without_effect_are_the_same_model():
  plain = saved_config.model_settings(
    saved_config.to_dict(quickstart.get_config("ce"))
  )

  def changed(variant="ce", **overrides):
    config = quickstart.get_config(variant)
    config.update_from_flattened_dict(overrides)
    return saved_config.model_settings(saved_config.to_dict(config))

  unused = {
    "loss.energy_ramp_epochs": 2.0,
    "loss.reduction": "sum",
    "loss.target_draw": "instance",
    "compose.mode": "independent",
  }
  assert changed(**unused) == plain
  assert changed(**{"optim.momentum": 0.5}) != plain
  guided = {"compose.mode": "independent"}
  assert changed("energy", **guided) == changed("energy")
  guided = {"loss.target_draw": "instance"}
  assert changed("energy", **guided) != changed("energy")
