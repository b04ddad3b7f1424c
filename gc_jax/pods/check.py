"""Compiles a recipe's train step for devices that need not be here.

Bottom up: the shapes of a step's arguments, one compilation, the search for the
largest batch that fits, and the story of all (`preflight`).
"""

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gc_jax import data, models
from gc_jax.data import pipeline
from gc_jax.method.types import Batch
from gc_jax.pods import compiler
from gc_jax.runtime import parallel
from gc_jax.training import build, checks, guidance
from gc_jax.training.step import TrainState, make_train_step

_logger = logging.getLogger(__name__)

# Schedules need the length of an epoch. It is a constant of the program, which
# changes neither shapes nor costs.
_STEPS_PER_EPOCH = 1_000
_MOST = 2**16  # images a device: beyond it the search gives up


class Target(NamedTuple):
  """What is compiled for."""

  mesh: Mesh
  memory_limit: int | None  # bytes of one device; None: not known
  fast: bool = False  # whether the compiler leaves out most optimizations


def lower(
  config: ConfigDict, mesh: Mesh, classes: data.Classes
) -> tuple[jax.stages.Lowered, TrainState, Batch]:
  """Returns the train step of a recipe, and the shapes of its arguments."""
  checks.validate(config, mesh.size)
  tx = build.optimizer(config, _STEPS_PER_EPOCH)
  platform = mesh.devices.flat[0].platform
  make_model = build.model_maker(config, classes, platform)
  everywhere = parallel.replicated(mesh)
  graphdef, state = jax.eval_shape(
    lambda key: build.create_state(make_model, tx, everywhere, key),
    models.init_key(0),
  )
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
  )
  batch = abstract_batch(config, classes, mesh)
  step = make_train_step(
    config,
    graphdef,
    tx,
    num_classes=classes.count,
    num_devices=mesh.size,
    steps_per_epoch=_STEPS_PER_EPOCH,
  )
  step = jax.jit(step, donate_argnums=0)  # as in training
  # Only the lowering: no array can be made on a mesh that is not here.
  with jax.set_mesh(mesh):
    return step.lower(state, batch), state, batch


def abstract_batch(
  config: ConfigDict, classes: data.Classes, mesh: Mesh
) -> Batch:
  """Returns the shapes of a batch of `data.pipeline.train_batches`."""
  count, side = config.batch_size, config.data.image_size
  shapes = {
    "image": ((side, side, 3), jnp.uint8),
    "mask": ((), jnp.float32),
  }
  if classes.multi_label:
    shapes["labels"] = ((classes.count,), jnp.int32)
  else:
    shapes["label"] = ((), jnp.int32)
  shapes |= pipeline.extra_shapes(guidance.needs(config), side)
  if config.data.on_error == "skip":
    shapes["skipped"] = ((), jnp.float32)
  return {
    name: jax.ShapeDtypeStruct(
      (count, *shape), dtype, sharding=parallel.divided(mesh)
    )
    for name, (shape, dtype) in shapes.items()
  }


def compile_step(
  config: ConfigDict, where: Target, classes: data.Classes
) -> dict[str, Any]:
  """Returns what the compiler says of the train step of a recipe.

  Plain values, in bytes of one device. The program fits if there is room for it
  and for the next batch, which waits beside it; without a known limit, if it
  was compiled. `memory_bytes` is None if the compiler refused, and `refused`
  says why; FLOPs are None if the compiler does not say.

  Raises:
    ValueError: the config does not allow the run.
  """
  started = time.perf_counter()
  mesh, limit = where.mesh, where.memory_limit
  lowered, state, batch = lower(config, mesh, classes)
  compiled, refused = _compile(lowered, where.fast)
  memory, exchanges, flops = None, [], None
  if compiled is not None:
    memory = compiler.memory(compiled.memory_analysis())
    num_bytes = sum(x.size * x.dtype.itemsize for x in batch.values())
    memory["next_batch"] = num_bytes // mesh.size
    memory["total_with_next_batch"] = memory["total"] + memory["next_batch"]
    exchanges = compiler.exchanges(compiled.as_text())
    flops = (compiled.cost_analysis() or {}).get("flops")
  per_device = config.batch_size // mesh.size
  pictures = compiler.picture_sized(
    exchanges,
    3 * config.data.image_size**2,
    {leaf.size for leaf in jax.tree.leaves(state.params)},
  )
  fits = memory and (limit is None or memory["total_with_next_batch"] <= limit)
  return {
    "batch_size": config.batch_size,
    "per_device": per_device,
    "fits": bool(fits),
    "memory_bytes": memory,
    "refused": refused and refused._asdict(),
    "flops_per_device": flops,
    "flops_per_image": flops and flops / per_device,
    "flops_per_step": flops and flops * config.batch_size / per_device,
    "collectives": compiler.by_kind(exchanges),
    "picture_sized": [
      {"kind": each.kind, "shapes": each.shapes, "bytes": each.num_bytes}
      for each in pictures
    ],
    "compile_secs": round(time.perf_counter() - started, 1),
  }


def _compile(
  lowered: jax.stages.Lowered, fast: bool
) -> tuple[jax.stages.Compiled | None, compiler.OutOfMemory | None]:
  level = jax.config.jax_optimization_level
  if fast:
    jax.config.update("jax_optimization_level", "O0")
  try:
    return lowered.compile(), None
  except jax.errors.JaxRuntimeError as error:
    refused = compiler.read_out_of_memory(str(error))
    if refused is None:
      raise
    return None, refused
  finally:
    jax.config.update("jax_optimization_level", level)


def images_unit(config: ConfigDict, num_devices: int) -> int:
  """Returns the step size of the per-device batch search.

  Its parts fill whole composites and groups of BatchNorm.
  """
  terms = guidance.chosen(config).values()
  units = [term.images_unit(config, num_devices) for term in terms]
  unit = math.lcm(num_devices, *units) // num_devices
  return math.lcm(unit, config.model.bn_group or 1) * config.accumulate_steps


def largest_that_fits(
  fits: Callable[[int], bool], guess: Callable[[], int], unit: int
) -> int:
  """Returns the largest size that fits; 0 if not even the smallest does.

  Sizes are multiples of `unit`, and whatever is smaller than one that fits is
  taken to fit. Near the limit a compilation may take minutes, so there are few
  trials: by doubling or halving, then by bisection over multiples of eight,
  begun at `guess`, the likely answer by all that is known when it is called.
  """
  doubled = lambda size: unit * 2 ** math.floor(math.log2(max(1, size / unit)))
  size = doubled(guess())
  fitting, failing = 0, None
  while not fitting or failing is None:
    if fits(size):
      fitting = size
      if failing is None and 2 * size > _MOST:
        return fitting
      size = (
        2 * size if failing else max(2 * size, min(doubled(guess()), _MOST))
      )
    else:
      failing = size
      if size == unit:
        return 0
      size //= 2
  step = math.lcm(8, unit)
  for trial in itertools.count():
    between = range((fitting // step + 1) * step, failing, step)
    if not between:
      return fitting
    middle = guess() // step * step if trial < 2 else between[len(between) // 2]
    middle = min(max(middle, between[0]), between[-1])
    if fits(middle):
      fitting = middle
    else:
      failing = middle


def search(
  config: ConfigDict, where: Target, classes: data.Classes
) -> dict[str, Any]:
  """Returns `asked`, `largest` and `tried` of `preflight`.

  The search begins at the config's batch. That is `asked`, or None if it cannot
  be divided over these devices, whose limit is known.
  """
  unit = images_unit(config, where.mesh.size)
  findings = {}

  def finding(per_device: int) -> dict[str, Any]:
    if per_device not in findings:
      tried = config.copy_and_resolve_references()
      tried.batch_size = per_device * where.mesh.size
      found = findings[per_device] = compile_step(tried, where, classes)
      _logger.info(
        "%d images a device: %s, compiled in %.0f s",
        per_device,
        "fits" if found["fits"] else "does not fit",
        found["compile_secs"],
      )
    return findings[per_device]

  asked = None
  try:
    checks.validate(config, where.mesh.size)
  except ValueError as error:
    _logger.warning("The recipe's own batch is left out: %s", error)
    finding(unit)
  else:
    asked = finding(config.batch_size // where.mesh.size)
  largest_that_fits(
    lambda size: finding(size)["fits"],
    lambda: _guess(findings, where.memory_limit),
    unit,
  )
  # The batch asked for, if no multiple of eight, may still be the largest.
  largest = max((n for n in findings if findings[n]["fits"]), default=None)
  return {
    "asked": asked,
    "largest": findings.get(largest),
    "tried": [
      {"per_device": size, "fits": findings[size]["fits"]}
      for size in sorted(findings)
    ],
  }


def _guess(findings: Mapping[int, dict[str, Any]], limit: int) -> int:
  """Returns about how many images fit, if memory grows evenly with them."""
  plans = {
    size: findings[size]["memory_bytes"]
    for size in sorted(findings)
    if findings[size]["memory_bytes"]
  }
  if not plans:
    return max(1, min(findings) // 2)
  needs = {n: plan["total_with_next_batch"] for n, plan in plans.items()}
  *before, last = needs
  if before:
    of_an_image = (needs[last] - needs[before[-1]]) / (last - before[-1])
  else:
    of_an_image = plans[last]["temporaries"] / last
  return last + int((limit - needs[last]) / max(1, of_an_image))


def read_per_device(text: str) -> int | str:
  """Returns the value of --per_chip_batch; 0: not given."""
  if text in ("", "auto"):
    return text or 0
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(
      f"--per_chip_batch={text} must be a number of images, at least 1, or "
      "auto."
    )
  return int(text)


def preflight(
  config: ConfigDict,
  topology: str,
  *,
  per_device: int | str = 0,
  num_classes: int = 0,
  fast: bool = False,
) -> dict[str, Any]:
  """Returns what the compiler says of a recipe's train step on some devices.

  Nothing is executed, and no data is read. The answer is plain values, for JSON
  and for the template preflight.txt: what was compiled, for which devices,
  `asked`, and with "auto" `largest` and `tried`.

  Args:
    config: resolved.
    topology: of `compiler.TOPOLOGIES`, or `compiler.LOCAL`.
    per_device: images on one device; 0 = the config's batch, divided; "auto":
      that, and the largest that fits.
    num_classes: K; 0 = that of the data set.
    fast: leave out most optimizations of the compiler. Memory may differ.
  """
  devices = compiler.devices(topology)
  classes = data.classes(config.data, num_classes)
  mesh = parallel.make_mesh(devices)
  limit = compiler.memory_limit(topology, devices)
  where = Target(mesh, limit, fast)
  config = config.copy_and_resolve_references()
  searching = per_device == "auto"
  if searching and limit is None:
    raise ValueError(
      "--per_chip_batch=auto must have a limit of memory to search below, and "
      f"--topology={topology} has none that is known; give a number."
    )
  if per_device and not searching:
    config.batch_size = per_device * mesh.size
  found = {
    "note": "compiled, not executed",
    "model": config.model.name,
    "image_size": config.data.image_size,
    "num_classes": classes.count,
    "compute_dtype": build.compute_dtype(
      config.compute_dtype, devices[0].platform
    ).name,
    "guidance": {
      guidance.TERMS[name].fields.title: dataclasses.asdict(settings)
      for name, settings in guidance.settings(config, mesh.size).items()
    },
    "topology": topology,
    "device_kind": devices[0].device_kind,
    "num_devices": mesh.size,
    "memory_limit_bytes": limit,
    "fast": fast,
    "compiler": compiler.versions(topology),
    "batch_size": config.batch_size,
  }
  if searching:
    return found | search(config, where, classes)
  return found | {"asked": compile_step(config, where, classes)}
