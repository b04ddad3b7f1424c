"""Every field there is, with its unit and default. Other configs change lines.

Nothing runs from here: see configs/quickstart.py for a recipe. The default of a
new field changes nothing: runs of before it go on with it. Fields of guidance
terms stand in gc_jax/training/guidance.py.
"""

import ml_collections

from gc_jax.training import guidance


def get_config() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.seed = 0  # model, data order, augmentation and composites follow from it
  c.num_epochs = 10.0
  c.batch_size = 128  # images of an update, over all devices
  c.accumulate_steps = 1  # equal parts that a batch is computed in, one after
  #   the other, for one update: memory of one part. The loss is the whole
  #   batch's; composites and BatchNorm keep to a part's images
  c.init_from = ""  # weights to start from: a run's folder, a .safetensors or
  #   .pth of the same architecture; outputs of other classes start anew
  c.init_head = True  # False: outputs start anew in any case; True: classes
  #   that were renamed, or put into another order, stop the run
  c.compute_dtype = "auto"  # auto | float32 | bfloat16 (auto: fp32 on CPU)

  c.data = ml_collections.ConfigDict()
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

  c.model = ml_collections.ConfigDict()
  c.model.name = "resnet18"  # a key of gc_jax.MODELS
  c.model.bn_group = 0  # images that a BatchNorm normalises together in
  #   training; 0 = all of a batch (or of a part), over every device. Counted
  #   in images, so that a run is the same on other devices. With no more than
  #   a device has, devices wait for each other once an update, not at every
  #   BatchNorm. Release: 64 on ImageNet, 128 on COCO
  c.model.remat = False  # the backward pass computes each block's insides
  #   anew, not the forward pass keeps them: less memory, a third more time

  c.loss = ml_collections.ConfigDict()
  c.loss.classification_weight = 1.0  # release: 80 for multi-label BCE
  c.loss.target_draw = "category"  # multi-label: category (paper) uniform over
  #   present classes | instance (release) in proportion to their objects
  # Of each guidance term its weight, 0 = off; the epochs over which the weight
  # rises from 0, 0 = at once; and what else it has: see the term's entry.
  for term in guidance.TERMS.values():
    for field in (term.weight, term.ramp, *term.fields):
      c.loss[field.name] = field.default

  c.compose = ml_collections.ConfigDict()
  c.compose.mode = "packed"  # packed | independent (paper)
  c.compose.distractors = "batch"  # batch | dataset (release: class-balanced,
  #   from the whole training set; four pictures decoded for one explained)
  c.compose.groups = 0  # images mix within one group; 0 = one per device

  c.optim = ml_collections.ConfigDict()
  c.optim.lr_per_256 = 0.1  # learning rate = lr_per_256 * batch_size / 256
  c.optim.momentum = 0.9
  c.optim.weight_decay = 1e-4  # on every parameter, as torch.optim.SGD
  c.optim.schedule = "step"  # step | cosine
  c.optim.step_epochs = (30, 60)  # "step": multiply by step_factor here
  c.optim.step_factor = 0.1
  c.optim.warmup_epochs = 0.0  # linear, from 0
  c.optim.clip_norm = 0.0  # global gradient norm; 0 = off

  c.eval = ml_collections.ConfigDict()
  c.eval.batch_size = 100  # rounded up to a multiple of the devices
  c.eval.every_epochs = 1.0  # on val_split, classification only
  c.eval.methods = ("gradcam_elementwise", "gradcam")  # keys of
  #   gc_jax.METHODS, explained after training; the first on the gallery.
  #   `gc_jax.evaluate` has its own --methods
  c.eval.protocol = "paper"  # paper: pictures and annotations as squares of
  #   data.image_size | release: pictures whole, annotations as they are
  c.eval.tolerance_px = 15.0  # of the pointing games. paper: at 224 pixels,
  #   scaled to data.image_size; release: of the annotation's own pixels
  c.eval.shorter_side_px = 448  # release: of pictures as the model gets them
  c.eval.round_px = 0  # release: their sides to a multiple of this; 0 = not
  c.eval.max_shapes = 64  # release: a program is compiled for each; more than
  #   this is an error
  c.eval.spg_samples = 100  # stochastic pointing game: points per run
  c.eval.spg_runs = 5
  c.eval.num_resamples = 1_000  # bootstrap over pictures for 95% intervals; 0
  #   = none
  # `gc_jax.evaluate` only:
  c.eval.epsilons = (1, 2, 8, 16, 32, 64)  # of FGSM and PGD, in 1/255
  c.eval.costly_rows = 50  # pairs of picture and class on which methods of
  #   many passes, PGD, insertion, deletion and boxes are measured
  c.eval.faithfulness_steps = 16  # insertion and deletion: parts of a picture
  c.eval.sanity_rows = 8  # pairs explained with weights randomised

  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every_epochs = 1.0
  c.checkpoint.keep = 2  # last ones; the best on val_split is kept too

  c.report = ml_collections.ConfigDict()
  c.report.baseline = ""  # folder of a finished run to set the report beside

  c.log = ml_collections.ConfigDict()
  c.log.every_steps = 20
  c.profile_steps = (0, 0)  # first and last step to trace; 0 = none. Goes into
  #   the workdir's folder profile
  return c


def parse_variant(
  variant: str, known: tuple[str, ...], default: str
) -> tuple[str, bool]:
  """Returns (name, whether it is to be shrunk) of "name", "name,smoke"."""
  words = [word for word in variant.split(",") if word]
  smoke = "smoke" in words
  names = [word for word in words if word != "smoke"] or [default]
  if len(names) > 1 or names[0] not in known:
    raise ValueError(
      f"Unknown config variant {variant!r}. Known: {', '.join(known)}, each "
      "also with ',smoke'; or 'smoke' alone."
    )
  return names[0], smoke


def shrink(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config shrunk to seconds on a CPU: the same code, few steps."""
  c.num_epochs = 2.0
  c.batch_size = 16
  c.eval.batch_size = 16
  c.data.train_split = "train[:64]"
  c.data.val_split = "validation[:20]"
  c.data.eval_split = "test[:40]"
  c.optim.warmup_epochs = min(c.optim.warmup_epochs, 1.0)
  for term in guidance.TERMS.values():
    c.loss[term.ramp.name] = min(c.loss[term.ramp.name], 1.0)
  c.log.every_steps = 2
  c.report.baseline = ""
  return c
