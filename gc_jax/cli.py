"""What the commands with a `--config` share: their flags, and what they say."""

import difflib
import logging
import re
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from gc_jax.runtime import files
from gc_jax.runtime.config import flatten, get_config

# Flags defined through this file are those of the command that asks for them.
flags.disclaim_key_flags()


def define_config(default: str | None, text: str) -> flags.FlagHolder:
  """Returns the flag `--config`, with its fields as `--config.field`.

  Args:
    default: file of the configuration that is used without the flag.
    text: for `--help`.
  """
  # Shells leave ~ alone behind an =, and the flag is read from here.
  sys.argv[1:] = map(_with_home, sys.argv[1:])
  try:
    return config_flags.DEFINE_config_file("config", default, text)
  except (AttributeError, KeyError) as error:
    # Fields that change a default are looked up at once.
    sys.exit(_unknown_field(sys.argv) or str(error))


def start(argv: list[str]) -> None:
  """Sets up the logs, and refuses what is left of a command line.

  Raises:
    app.UsageError: something is left.
  """
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected argument {argv[1]!r}; use --flag=value.")
  # Libraries log through absl, Orbax a page for every checkpoint.
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.getLogger("gc_jax").setLevel(logging.INFO)


def parser(config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
  """Returns a parser for `app.run` that exits with one clear line.

  Args:
    config: the flag of the configuration.
  """

  def parse(argv: list[str]) -> list[str]:
    try:
      rest = flags.FLAGS(argv)
      config.value.seed  # noqa: B018 (a file that failed to load says so here)
      return rest
    except (AttributeError, KeyError) as error:
      # ml_collections on a field that does not exist.
      sys.exit(_unknown_field(argv) or str(error))
    except (flags.Error, OSError, ValueError) as error:
      # Errors in a config file come wrapped in their own traceback.
      sys.exit(f"{argv[0]}: {str(error).strip().splitlines()[-1].strip()}")

  return parse


def _with_home(argument: str) -> str:
  """Returns an argument in which the file of --config lies in no ~."""
  found = re.fullmatch("(--?config=)(~[^:]*)(.*)", argument)
  if not found:
    return argument
  try:
    return f"{found[1]}{files.as_path(found[2])}{found[3]}"
  except ValueError as error:
    sys.exit(f"--config: {error}")


def _unknown_field(argv: list[str]) -> str:
  """Says which `--config.field` of the arguments is none, and the nearest."""
  known = [f"--config.{name}" for name in flatten(get_config().to_dict())]
  for argument in argv:
    name = argument.split("=")[0]
    if name.startswith("--config.") and name not in known:
      nearest = difflib.get_close_matches(name, known, n=1)
      hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
      return (
        f"Unknown field {name}.{hint} gc_jax/runtime/config.py has them all."
      )
  return ""
