"""What is refused before anything runs, and the words it is refused in."""

import pytest

from configs import (
  base,
  coco,
  context,
  folder,
  imagenet,
  quickstart,
  quickstart_multi,
)
from gc_jax.data import Dataset
from gc_jax.runtime import config as saved_config
from gc_jax.training import config as configs
from gc_jax.training import guidance


def make(**overrides):
  config = quickstart.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(overrides)
  return config


@pytest.mark.parametrize(
  ("recipe", "variant"),
  [
    (recipe, variant)
    for recipe, variants in (
      (quickstart, quickstart.VARIANTS),
      (quickstart_multi, quickstart.VARIANTS),
      (folder, folder.VARIANTS),
    )
    for variant in variants
  ],
)
@pytest.mark.parametrize("smoke", ["", ",smoke"])
def test_every_variant_of_every_recipe_is_valid(recipe, variant, smoke):
  config = recipe.get_config(variant + smoke)
  if config.data.name == "folder":
    config.data.path = "DIR"
  configs.validate(config, num_devices=1)


@pytest.mark.parametrize("recipe", [imagenet, coco])
@pytest.mark.parametrize("variant", imagenet.VARIANTS)
@pytest.mark.parametrize("smoke", ["", ",smoke"])
def test_every_variant_of_the_papers_recipes_is_valid(recipe, variant, smoke):
  config = recipe.get_config(variant + smoke)
  configs.validate(config, num_devices=1)
  configs.validate(config, num_devices=4)


def test_recipes_of_the_paper_have_the_values_of_the_release():
  names = (
    "model.name",
    "num_epochs",
    "batch_size",
    "optim.lr_per_256",
    "optim.momentum",
    "optim.weight_decay",
    "optim.step_epochs",
    "loss.classification_weight",
    "loss.consistency_weight",
    "loss.target_draw",
    "compose.mode",
  )

  def values(recipe, variant):
    flat = saved_config.flatten(recipe.get_config(variant).to_dict())
    return tuple(flat[name] for name in names)

  steps = {imagenet: (90, 256, 0.1, 0.9, 1e-4, (30, 60), 1)}
  steps[coco] = (36, 256, 0.01, 0.9, 5e-4, (24, 30), 80)
  assert values(imagenet, "resnet18-gc") == (
    "resnet18",
    *steps[imagenet],
    25,
    "category",
    "packed",
  )
  assert values(imagenet, "resnet50-gmp")[:1] == ("resnet50-gmp",)
  assert values(imagenet, "resnet50-gmp")[-3] == 0
  assert values(imagenet, "alexnet-ce")[3] == 0.01
  assert values(coco, "resnet18-gmp_gc") == (
    "resnet18-gmp",
    *steps[coco],
    1,
    "instance",
    "independent",
  )
  assert values(coco, "resnet18-ce")[-3] == 0
  default = [recipe.get_config() for recipe in (imagenet, coco)]
  assert [c.model.name for c in default] == 2 * ["resnet18"]
  assert [c.data.name for c in default] == ["imagenet", "coco"]


@pytest.mark.parametrize("variant", context.VARIANTS)
def test_the_context_recipe_is_valid_and_its_smoke_needs_no_package(variant):
  recipe, smoke = (
    context.get_config(variant),
    context.get_config(variant + ",smoke"),
  )
  configs.validate(recipe, num_devices=1)
  configs.validate(smoke, num_devices=1)
  assert recipe.data.name == f"context_{variant.partition('_')[0]}"
  assert smoke.data.name == "context_digits"
  assert smoke.model.name == recipe.model.name


def test_variants_are_the_four_rows_of_the_papers_tables_and_each_term():
  rows = {
    variant: (
      quickstart.get_config(variant).model.name.endswith("-gmp"),
      *guidance.chosen(quickstart.get_config(variant)),
    )
    for variant in quickstart.VARIANTS
  }
  assert rows == {
    "ce": (False,),
    "gc": (False, "consistency"),
    "gmp": (True,),
    "gmp_gc": (True, "consistency"),
    "energy": (False, "energy"),
  }


def test_an_unknown_variant_is_named_with_the_known_ones():
  with pytest.raises(ValueError, match=r"'gap'\. Known: ce, gc, gmp, gmp_gc"):
    quickstart.get_config("gap")


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (
      {"model.name": "resnet5"},
      r"Unknown --config\.model\.name='resnet5'\. Known: .*resnet50.* "
      r"Did you mean 'resnet50'\?",
    ),
    (
      {"data.name": "context_digit"},
      r"Unknown --config\.data\.name=.*Did you mean 'context_digits'\?",
    ),
    (
      {"compose.mode": "pack"},
      r"Unknown --config\.compose\.mode='pack'.*Did you mean 'packed'\?",
    ),
    (
      {"optim.schedule": "cosin"},
      r"Unknown --config\.optim\.schedule.*Did you mean 'cosine'\?",
    ),
    ({"eval.protocol": "papers"}, r"eval\.protocol.*Did you mean 'paper'\?"),
    ({"loss.reduction": "avg"}, r"loss\.reduction='avg'\. Known: mean, sum"),
    (
      {"loss.consistency_weight": -1.0},
      r"--config\.loss\.consistency_weight=-1\.0 must be a finite number at "
      r"least 0",
    ),
    (
      {"optim.lr_per_256": float("nan")},
      r"--config\.optim\.lr_per_256=nan must be a finite number above 0",
    ),
    ({"data.crop": "randm"}, r"Unknown --config\.data\.crop='randm'\. Known"),
    ({"data.on_error": "ignore"}, r"data\.on_error='ignore'\. Known: raise, s"),
    (
      {"compose.distractors": "data"},
      r"compose\.distractors='data'\. Known: batch, dataset",
    ),
    (
      {"compose.distractors": "dataset"},
      r"must go with --config\.compose\.mode='independent', and it is "
      r"'packed': .* no cell is left for any other",
    ),
    (
      {"data.name": "folder"},
      r"--config\.data\.path must name a folder of pictures .* is empty",
    ),
    (
      {"data.crop": "random_resized", "data.crop_padding_px": 4},
      r"crop_padding_px=4 shifts the centre crop and must be 0 with "
      r"--config\.data\.crop='random_resized'",
    ),
    (
      {"data.eval_squash": True, "data.eval_resize_px": 72},
      r"eval_resize_px=72 .* must be 0 with --config\.data\.eval_squash=True",
    ),
    (
      {"data.eval_resize_px": 63},
      r"eval_resize_px=63 must be at least --config\.data\.image_size=64",
    ),
    (
      {"model.name": "alexnet", "data.image_size": 62},
      r"image_size=62 must be at least 63 for --config\.model\.name='alexnet'",
    ),
    (
      {"loss.energy_weight": float("inf")},
      r"--config\.loss\.energy_weight=inf must be a finite number at least 0",
    ),
    (
      {"loss.energy_ramp_epochs": -2.0},
      r"--config\.loss\.energy_ramp_epochs=-2\.0 must be a finite number at",
    ),
    ({"seed": -1}, r"--config\.seed=-1 must be a finite number at least 0"),
    ({"num_epochs": 0.0}, r"--config\.num_epochs=0\.0 must be .* above 0"),
  ],
)
def test_bad_values_are_refused_by_name(overrides, message):
  with pytest.raises(ValueError, match=message):
    configs.validate(make(**overrides), num_devices=1)


def test_a_batch_must_divide_among_devices():
  message = (
    r"--config\.batch_size=100 must be divisible by 8 devices; use 96 or 104"
  )
  with pytest.raises(ValueError, match=message):
    configs.validate(make(batch_size=100), num_devices=8)


def test_a_packed_batch_must_divide_into_composites_of_four():
  message = (
    r"--config\.batch_size=20 must be divisible by 2 groups by 4 images a "
    r"composite under --config\.compose\.mode='packed'; use 16 or 24"
  )
  with pytest.raises(ValueError, match=message):
    configs.validate(make(batch_size=20), num_devices=2)
  # Independent composites take any batch; plain training makes none.
  configs.validate(
    make(batch_size=20, **{"compose.mode": "independent"}), num_devices=2
  )
  configs.validate(
    make(batch_size=20, **{"loss.consistency_weight": 0.0}), num_devices=2
  )


@pytest.mark.parametrize("steps", [(3, 2), (0, 1), (5,), (1, 2, 3)])
def test_steps_to_trace_are_a_first_and_a_last(steps):
  with pytest.raises(ValueError, match="must be the first and the last step"):
    configs.validate(make(profile_steps=steps), num_devices=1)


def test_a_group_must_have_three_distractors_for_a_picture():
  fields = {"compose.mode": "independent", "accumulate_steps": 2}
  configs.validate(make(batch_size=16, **fields), num_devices=2)
  with pytest.raises(
    ValueError,
    match=r"at least 4 images for each of 4 groups .*; it has 2\. "
    r"Use 32, or --config\.compose\.distractors=dataset",
  ):
    configs.validate(make(batch_size=16, **fields), num_devices=4)
  fields["compose.distractors"] = "dataset"
  configs.validate(make(batch_size=16, **fields), num_devices=4)


def test_groups_must_not_straddle_devices():
  message = r"--config\.compose\.groups=2 must be a multiple of 4 devices"
  with pytest.raises(ValueError, match=message):
    configs.validate(make(**{"compose.groups": 2}), num_devices=4)


def dataset(class_names, source):
  return Dataset(
    source=source,
    class_names=tuple(class_names),
    multi_label=False,
    name="hand-made",
  )


def test_one_class_is_nothing_to_tell_apart():
  with pytest.raises(ValueError, match=r"at least two classes.*it has 1"):
    configs.validate_data(make(), dataset(["only"], [{}] * 1_000))


def test_a_batch_larger_than_the_data_is_refused():
  with pytest.raises(ValueError, match="at most the 10 examples"):
    configs.validate_data(make(), dataset(["a", "b"], [{}] * 10))


BARE = {"labels": [0]}
LOCATED = BARE | {"objects": {"label": [0]}}


def test_a_term_that_needs_objects_is_refused_where_the_data_has_none():
  config = make(**{"loss.energy_weight": 0.5})
  with pytest.raises(
    ValueError,
    match=r"^--config\.loss\.energy_weight=0\.5 must be told where objects "
    r"are, by masks or boxes .*; hand-made, split 'train', has none\. Add "
    r"them, or set --config\.loss\.energy_weight=0\.$",
  ):
    configs.validate_data(config, dataset("ab", [BARE] * 32))
  configs.validate_data(config, dataset("ab", [BARE] * 31 + [LOCATED]))
  # Without the term nobody asks.
  configs.validate_data(make(), dataset("ab", [BARE] * 32))


def test_every_field_has_a_default_that_may_be_overridden():
  for name, value in saved_config.flatten(base.get_config().to_dict()).items():
    assert value is not None, name
    assert not isinstance(value, list), name
