"""A folder holds one run: what may change in it, and what is another one."""

import json

import pytest

from configs import quickstart
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files


def make(**overrides):
  config = quickstart.get_config()
  config.update_from_flattened_dict(overrides)
  return config


@pytest.fixture
def saved(tmp_path):
  """Saves nested fields as the configuration of the run in `tmp_path`."""
  path = tmp_path / saved_config.FILENAME
  return lambda config: path.write_text(json.dumps(config))


def test_a_workdir_of_another_run_is_left_alone_and_told_apart(tmp_path, saved):
  saved(saved_config.to_dict(quickstart.get_config("gmp")))
  before = (tmp_path / saved_config.FILENAME).read_bytes()
  with pytest.raises(ValueError, match="another configuration") as caught:
    saved_config.check_same_run(quickstart.get_config("gc"), tmp_path)
  text = str(caught.value)
  assert "--config.loss.consistency_weight: 0.0 there, 75.0 now" in text
  assert "model.name: 'resnet8-small-gmp' there, 'resnet8-small' now" in text
  assert "data.name" not in text
  assert (tmp_path / saved_config.FILENAME).read_bytes() == before


@pytest.mark.parametrize(
  ("text", "found"), [('{"seed": 0', "it is not JSON"), ("[1]", r"it is \[1\]")]
)
def test_a_broken_configuration_is_told_and_left_alone(tmp_path, text, found):
  path = tmp_path / saved_config.FILENAME
  path.write_text(text)
  with pytest.raises(ValueError, match=rf"config\.json must be .*{found}"):
    saved_config.check_same_run(make(), tmp_path)
  assert path.read_text() == text


def test_a_folder_of_other_files_is_no_workdir(tmp_path):
  saved_config.check_same_run(make(), tmp_path / "new")
  # A run that ended before it wrote anything, in a folder that launch/ made.
  (tmp_path / files.LOCK).touch()
  (tmp_path / "compiled").mkdir()
  saved_config.check_same_run(make(), tmp_path)
  (tmp_path / "letter.txt").touch()
  with pytest.raises(ValueError, match=r"holds letter\.txt and no conf"):
    saved_config.check_same_run(make(), tmp_path)
  with pytest.raises(ValueError, match=r"letter\.txt must be a folder, "):
    saved_config.check_same_run(make(), tmp_path / "letter.txt")
  assert len(list(tmp_path.iterdir())) == 3


def test_every_field_has_its_name_and_what_is_said_beside_it():
  said = saved_config.meanings()
  assert said.keys() == saved_config.flatten(make().to_dict()).keys()
  assert said["batch_size"] == "images of an update, over all devices"
  assert said["data.num_workers"].endswith("room for what processes hand over")
  assert "lambda" in said["loss.consistency_weight"]
  assert said["go_on_from"].startswith("folder of a run to go on from")


def test_a_run_goes_on_elsewhere_and_with_the_defaults_of_newer_fields(
  tmp_path, saved
):
  config = saved_config.to_dict(make())
  assert config["optim"]["step_epochs"] == [30, 60]
  del config["accumulate_steps"], config["model"]["bn_group"]
  saved(config)
  moved = {"data.num_workers": 2, "data.on_error": "skip"}
  moved = make(**moved, **{"log.every_steps": 7})
  for same in (make(), moved):
    saved_config.check_same_run(same, tmp_path)
  with pytest.raises(ValueError, match="accumulate_steps: 1 there, 2 now"):
    saved_config.check_same_run(make(accumulate_steps=2), tmp_path)
  saved(config | {"forgotten": 3})
  with pytest.raises(ValueError, match="forgotten: 3 there, None now"):
    saved_config.check_same_run(make(), tmp_path)


def test_fields_without_effect_make_no_other_model():
  def settings(variant, **overrides):
    config = quickstart.get_config(variant)
    config.update_from_flattened_dict(overrides)
    return saved_config.model_settings(saved_config.to_dict(config))

  unused = {
    "loss.energy_ramp_epochs": 2.0,
    "loss.reduction": "sum",
    "loss.target_draw": "instance",
    "compose.mode": "independent",
  }
  assert settings("ce", **unused) == settings("ce")
  assert settings("ce", **{"optim.momentum": 0.5}) != settings("ce")
  mode = {"compose.mode": "independent"}
  assert settings("energy", **mode) == settings("energy")
  assert settings("gc", **mode) != settings("gc")
  drawn = {"loss.target_draw": "instance"}
  assert settings("energy", **drawn) != settings("energy")
