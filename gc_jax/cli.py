"""What the commands share: their exit statuses, `--config`, and their errors.

A command exits with DONE, NO or WRONG; and when a signal asks it to end, as
`runtime.signals` says.
"""

import logging
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from gc_jax.runtime import files
from gc_jax.runtime.config import flatten, get_config
from gc_jax.runtime.messages import UserError, unknown_name_message

DONE = 0
NO = 1  # the answer is no: a recipe does not fit, a verification differs
WRONG = 2  # the arguments or the data are wrong; a line says what to change

# Flags defined through this file are those of the command that asks for them.
flags.disclaim_key_flags()


def exit_status(work: Callable[[], bool | None]) -> int:
  """Does the work of a command; returns the status to exit with.

  `work` returns False where the answer is no. Errors that the user can mend
  become a line on stderr.
  """
  try:
    return NO if work() is False else DONE
  except (UserError, ValueError, OSError, ImportError) as error:
    # A progress bar may have left the cursor in its line.
    start = "\n" if sys.stderr.isatty() else ""
    print(f"{start}error: {error}", file=sys.stderr)
    return WRONG


def fail(message: str) -> NoReturn:
  """Ends the command with a line: its arguments are wrong."""
  print(f"error: {message}", file=sys.stderr)
  sys.exit(WRONG)


def define_config(default: str | None, text: str) -> flags.FlagHolder:
  """Returns the flag `--config`, with its fields as `--config.field`.

  Without the flag, the file `default` is the configuration.
  """
  # Shells leave ~ alone behind an =, and the flag is read from here.
  sys.argv[1:] = map(_with_home, sys.argv[1:])
  try:
    return config_flags.DEFINE_config_file("config", default, text)
  except (AttributeError, KeyError) as error:
    # Fields that change a default are looked up at once.
    fail(_unknown_field(sys.argv) or str(error))


def start(argv: list[str]) -> None:
  """Sets up the logs, and refuses what is left of a command line."""
  if len(argv) > 1:
    fail(f"Unexpected argument {argv[1]!r}; use --flag=value.")
  # Libraries log through absl, Orbax a page for every checkpoint.
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.getLogger("gc_jax").setLevel(logging.INFO)


def run(main: Callable[[list[str]], int], config: flags.FlagHolder) -> NoReturn:
  """Runs `main` on what is left of the command line, and exits."""

  def parse(argv: list[str]) -> list[str]:
    try:
      rest = flags.FLAGS(argv)
      config.value.seed  # noqa: B018 (a file that failed to load says so here)
      return rest
    except (AttributeError, KeyError) as error:
      # ml_collections on a field that does not exist.
      fail(_unknown_field(argv) or str(error))
    except (flags.Error, OSError, ValueError) as error:
      # Errors in a config file come wrapped in their own traceback.
      fail(str(error).strip().splitlines()[-1].strip())
    except SystemExit as ended:
      sys.exit(DONE if ended.code == 1 else ended.code)  # absl's --help

  app.run(main, flags_parser=parse)


def _with_home(argument: str) -> str:
  """Returns an argument in which the file of --config lies in no ~."""
  found = re.fullmatch("(--?config=)(~[^:]*)(.*)", argument)
  if not found:
    return argument
  try:
    return f"{found[1]}{files.as_path(found[2])}{found[3]}"
  except ValueError as error:
    fail(f"--config: {error}")


def _unknown_field(argv: list[str]) -> str:
  """Says which `--config.field` is unknown, and the nearest."""
  known = [f"--config.{name}" for name in flatten(get_config().to_dict())]
  for argument in argv:
    name = argument.split("=")[0]
    if name.startswith("--config.") and name not in known:
      message = unknown_name_message("field", name, known)
      return f"{message} gc_jax/runtime/config.py has them all."
  return ""
