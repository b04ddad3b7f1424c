"""Compiles a recipe's train step for devices that need not be here."""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gc_jax import data
from gc_jax.pods import compiled, largest_batch, lowering, topologies
from gc_jax.pods.compiled import Exchange, Memory, OutOfMemory
from gc_jax.runtime import parallel
from gc_jax.training import config as configs
from gc_jax.training import guidance, recipe

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
  """What is compiled for.

  Attributes:
    topology: of `topologies.TOPOLOGIES`, or `topologies.LOCAL`.
    mesh: its devices.
    memory_limit: bytes of one device; None: not known.
    fast: whether the compiler leaves out most of what it does.
  """

  topology: str
  mesh: Mesh
  memory_limit: int | None
  fast: bool


@dataclasses.dataclass(frozen=True)
class Finding:
  """What came of compiling one batch size.

  Attributes:
    batch_size: images over all devices.
    per_device: images on one.
    fits: whether the program, with the next batch beside it, is within the
      limit; where that is not known, whether it was compiled.
    memory: plan of one device; None where the compiler refused.
    refused: why; None where it did not.
    next_batch: bytes of the batch that lies ready on a device meanwhile.
    flops: of one step on one device; None where the compiler does not say.
    exchanges: collectives.
    picture_sized: those of them that may carry pictures.
    compile_secs: what it took.
  """

  batch_size: int
  per_device: int
  fits: bool
  memory: Memory | None
  refused: OutOfMemory | None
  next_batch: int
  flops: float | None
  exchanges: tuple[Exchange, ...]
  picture_sized: tuple[Exchange, ...]
  compile_secs: float


def preflight(
  config: ConfigDict,
  topology: str,
  *,
  per_device: int | str = 0,
  num_classes: int = 0,
  fast: bool = False,
) -> dict[str, Any]:
  """Returns what the compiler says of a recipe's train step on some devices.

  Nothing is executed, and no data is read.

  Args:
    config: resolved.
    topology: of `topologies.TOPOLOGIES`, or `topologies.LOCAL`.
    per_device: images on one device; 0 = as the config's batch has it; "auto":
      that, and the largest that fits.
    num_classes: K; 0 = that of the data set.
    fast: leave out most optimizations of the compiler. Memory may differ.

  Returns:
    Plain values for JSON and `report.preflight_table`: what was compiled, for
    which devices, `asked`, and with "auto" `largest` and `tried`.

  Raises:
    ValueError: the config or an argument does not allow it.
    ModuleNotFoundError: the devices' compiler is not installed.
  """
  topologies.check_topology(topology)
  classes = data.classes(config.data, num_classes)
  where = target(topology, fast)
  config = config.copy_and_resolve_references()
  searching = per_device == "auto"
  if searching and where.memory_limit is None:
    raise ValueError(
      "--per_chip_batch=auto must have a limit of memory to search below, and "
      f"--topology={topology} has none that is known; give a number."
    )
  if per_device and not searching:
    config.batch_size = per_device * where.mesh.size
  found = {
    "note": "compiled, not executed",
    "model": config.model.name,
    "image_size": config.data.image_size,
    "num_classes": classes.count,
    "compute_dtype": recipe.compute_dtype(
      config.compute_dtype, lowering.platform(where.mesh)
    ).name,
    "guidance": {
      term.title: dataclasses.asdict(term.settings(config, where.mesh.size))
      for term in guidance.chosen(config).values()
    },
    "topology": topology,
    "device_kind": where.mesh.devices.flat[0].device_kind,
    "num_devices": where.mesh.size,
    "memory_limit_bytes": where.memory_limit,
    "fast": fast,
    "compiler": topologies.compiler(topology),
    "batch_size": config.batch_size,
  }
  if not searching:
    return found | {
      "asked": as_dict(compile_step(config, where, classes)),
    }
  return found | search(config, where, classes)


def search(
  config: ConfigDict, where: Target, classes: data.Classes
) -> dict[str, Any]:
  """Returns `asked`, `largest` and `tried` of `preflight`.

  Args:
    config: its batch is where the search begins, and is `asked`; None where it
      cannot be divided over these devices.
    where: from `target`, with a limit.
    classes: of the data.
  """
  unit = largest_batch.images_unit(config, where.mesh.size)
  findings = {}

  def finding(per_device: int) -> Finding:
    if per_device not in findings:
      tried = config.copy_and_resolve_references()
      tried.batch_size = per_device * where.mesh.size
      findings[per_device] = compile_step(tried, where, classes)
      _logger.info(
        "%d images a device: %s, compiled in %.0f s",
        per_device,
        "fits" if findings[per_device].fits else "does not fit",
        findings[per_device].compile_secs,
      )
    return findings[per_device]

  try:
    configs.validate(config, where.mesh.size)
  except ValueError as error:
    _logger.warning("The recipe's own batch is left out: %s", error)
    possible = False
  else:
    possible = True
  first = finding(config.batch_size // where.mesh.size if possible else unit)
  largest_batch.largest_that_fits(
    lambda size: finding(size).fits,
    lambda: _guess(findings, where.memory_limit),
    unit,
  )
  # Not a multiple of eight, what was asked may still be the largest known.
  largest = max((size for size in findings if findings[size].fits), default=0)
  return {
    "asked": as_dict(first) if possible else None,
    "largest": as_dict(findings[largest]) if largest else None,
    "tried": [
      {"per_device": size, "fits": findings[size].fits}
      for size in sorted(findings)
    ],
  }


def _guess(findings: Mapping[int, Finding], limit: int) -> int:
  """Returns about how many images fit, if memory grows with them evenly.

  Args:
    findings: of at least one size.
    limit: bytes of one device.
  """
  needs = {
    size: each.memory.total + each.next_batch
    for size, each in sorted(findings.items())
    if each.memory is not None
  }
  if not needs:
    return max(1, min(findings) // 2)
  *before, last = needs
  if before:
    of_an_image = (needs[last] - needs[before[-1]]) / (last - before[-1])
  else:
    of_an_image = findings[last].memory.temporaries / last
  return last + int((limit - needs[last]) / max(1, of_an_image))


def read_per_device(text: str) -> int | str:
  """Returns what --per_chip_batch says; 0: nothing.

  Raises:
    ValueError: it is neither a number of images nor "auto".
  """
  if text in ("", "auto"):
    return text or 0
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(
      f"--per_chip_batch={text} must be a number of images, at least 1, or "
      "auto."
    )
  return int(text)


def target(topology: str, fast: bool = False) -> Target:
  """Returns what a topology's name stands for.

  Args:
    topology: of `topologies.TOPOLOGIES`, or `topologies.LOCAL`.
    fast: see `preflight`.

  Raises:
    ValueError: there is no such topology.
    ModuleNotFoundError: its compiler is not installed.
  """
  devices = topologies.devices(topology)
  return Target(
    topology,
    parallel.make_mesh(devices),
    topologies.memory_limit(topology, devices),
    fast,
  )


def compile_step(
  config: ConfigDict, where: Target, classes: data.Classes
) -> Finding:
  """Returns what the compiler says of the train step of a recipe.

  The step, the state and what lies where are those of a run; the batch is
  shaped as `data.pipeline.train_batches` makes it.

  Args:
    config: resolved.
    where: from `target`.
    classes: of the data.

  Raises:
    ValueError: the config does not allow the run.
  """
  started = time.perf_counter()
  mesh, limit = where.mesh, where.memory_limit
  lowered, state, batch = lowering.lower(config, mesh, classes)
  program, refused = _compile(lowered, where.fast)
  memory, found, costs = None, (), {}
  if program is not None:
    memory = compiled.memory(program.memory_analysis())
    found = tuple(compiled.exchanges(program.as_text()))
    costs = program.cost_analysis() or {}
  next_batch = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in batch.values()
  )
  next_batch //= mesh.size
  return Finding(
    batch_size=config.batch_size,
    per_device=config.batch_size // mesh.size,
    fits=is_within(memory, next_batch, limit),
    memory=memory,
    refused=refused,
    next_batch=next_batch,
    flops=costs.get("flops"),
    exchanges=found,
    picture_sized=tuple(
      compiled.picture_sized(
        found,
        3 * config.data.image_size**2,
        {leaf.size for leaf in jax.tree.leaves(state.params)},
      )
    ),
    compile_secs=time.perf_counter() - started,
  )


def is_within(
  memory: Memory | None, next_batch: int, limit: int | None
) -> bool:
  """Returns whether a device holds a program and the batch after this one.

  Args:
    memory: plan of the program; None: the compiler found none.
    next_batch: bytes of the batch that waits.
    limit: bytes; None: not known, and taken to be enough.
  """
  if memory is None:
    return False
  return limit is None or memory.total + next_batch <= limit


def _compile(
  lowered: jax.stages.Lowered, fast: bool
) -> tuple[jax.stages.Compiled | None, OutOfMemory | None]:
  """Returns the program, or why there is none."""
  level = jax.config.jax_optimization_level
  if fast:
    jax.config.update("jax_optimization_level", "O0")
  try:
    return lowered.compile(), None
  except jax.errors.JaxRuntimeError as error:
    refused = compiled.read_out_of_memory(str(error))
    if refused is None:
      raise
    return None, refused
  finally:
    jax.config.update("jax_optimization_level", level)


def as_dict(finding: Finding) -> dict[str, Any]:
  """Returns a finding as plain values, collectives summed up by kind."""
  flops = finding.flops
  memory = finding.memory
  return {
    "batch_size": finding.batch_size,
    "per_device": finding.per_device,
    "fits": finding.fits,
    "memory_bytes": memory
    and memory._asdict()
    | {
      "total": memory.total,
      "next_batch": finding.next_batch,
      "total_with_next_batch": memory.total + finding.next_batch,
    },
    "refused": finding.refused and finding.refused._asdict(),
    "flops_per_device": flops,
    "flops_per_image": flops and flops / finding.per_device,
    "flops_per_step": flops and flops * finding.batch_size / finding.per_device,
    "collectives": compiled.by_kind(finding.exchanges),
    "picture_sized": [
      {"kind": each.kind, "shapes": each.shapes, "bytes": each.num_bytes}
      for each in finding.picture_sized
    ],
    "compile_secs": round(finding.compile_secs, 1),
  }
