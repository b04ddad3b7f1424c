"""Prepares a TFDS builder once, whole or not at all, whoever asks for it.

TFDS writes into a folder `incomplete.*` and renames it when it is finished, so
that a folder under the final name is complete. What is added here: processes
that want the same data wait for the first instead of repeating its work, the
folders of killed ones are removed, and nothing is printed but one line.
"""

import contextlib
import io
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from gc_jax.runtime import files

# TFDS makes a temporary folder for each builder without data, to fetch its
# description from a bucket that is switched off, and leaves the folder behind.
tfds.core.DatasetInfo.initialize_from_bucket = lambda self: None


def prepare(
  make_builder: Callable[[], tfds.core.DatasetBuilder],
  *,
  download_config: tfds.download.DownloadConfig | None = None,
  show_progress: bool = False,
) -> tfds.core.DatasetBuilder:
  """Returns a builder whose data is on disk.

  Args:
    make_builder: makes the builder. It is called again once the data is
      there: a builder reads its splits from disk when it is made.
    download_config: of a builder that downloads.
    show_progress: lets TFDS draw its own bars, on a terminal. Our builders
      bring one that knows its total.

  Raises:
    ValueError: if the TFDS directory cannot be written to.
  """
  builder = make_builder()
  final = pathlib.Path(builder.data_path)
  if final.exists():
    return builder
  with claim(final, builder.name) as locked:
    if not final.exists():
      if locked:  # then whoever made these is dead
        for stale in final.parent.glob(f"incomplete.*_{final.name}"):
          shutil.rmtree(stale)
      _prepare(
        builder, final, download_config, show_progress and sys.stderr.isatty()
      )
  return make_builder()


@contextlib.contextmanager
def claim(final: pathlib.Path, name: str) -> Iterator[bool]:
  """Holds the right to write `final`; waits for another process that does.

  Yields whether it is certain that no other process writes. Where it is not,
  two may prepare side by side, and the second to finish is in vain.

  Raises:
    ValueError: if the folder around it cannot be written to.
  """
  try:
    final.parent.mkdir(parents=True, exist_ok=True)
    lock_path = final.parent / f".{final.name}.lock"
    lock_path.touch()
  except OSError as error:
    raise ValueError(
      f"{name} must be prepared in {final.parent}, which cannot be "
      f"written to ({error.strerror}); set --config.data.dir to a folder "
      "that can."
    ) from error

  def say(holder: str) -> None:
    print(f"Waiting for {holder}, which prepares {name}", file=sys.stderr)

  with files.locked(lock_path, say) as locked:
    yield locked


def _prepare(
  builder: tfds.core.DatasetBuilder,
  final: pathlib.Path,
  download_config: tfds.download.DownloadConfig | None,
  show_progress: bool,
) -> None:
  start = time.monotonic()
  if not show_progress:
    tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_config=download_config)
  except OSError:
    # The rename fails where another process, without a lock, was faster.
    if not final.exists():
      raise
    return
  finally:
    tfds.enable_progress_bar()
  secs = time.monotonic() - start
  count = sum(split.num_examples for split in builder.info.splits.values())
  config = builder.builder_config
  name = f"{builder.name}/{config.name}" if config else builder.name
  print(
    f"Prepared {count:,} images of {name} in {final}: {secs:.1f} s",
    file=sys.stderr,
  )
