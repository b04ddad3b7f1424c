"""What the commands share: their exit statuses, `--config`, and their errors.

A command exits with DONE, NO or WRONG; and when a signal asks it to end, as
`runtime.signals` says.

Commands import what they work with when they begin to work: an error in their
arguments is told first. So this file and what it imports must not need jax.
"""

import ast
import contextlib
import importlib
import logging
import pathlib
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from gc_jax.runtime import files, speaking
from gc_jax.runtime.config import flatten, get_config, meanings
from gc_jax.runtime.messages import UserError, nearest_fields

DONE = 0
NO = 1  # the answer is no: a recipe does not fit, a verification differs
WRONG = 2  # the arguments or the data are wrong; a line says what to change

_FIELDS_FILE = "gc_jax/runtime/config.py"
_RECIPES = pathlib.Path(__file__).parents[1] / "configs"
# Beside an installed package may lie a stranger's folder of that name.
_IS_SOURCE = pathlib.Path(__file__).with_name("pyproject.toml").is_file()
_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")
_MOST_NEAR = 4  # fields that an unknown one may stand for

# Flags defined through this file are those of the command that asks for them.
flags.disclaim_key_flags()


def exit_status(work: Callable[[], bool | None]) -> int:
  """Does the work of a command; returns the status to exit with.

  `work` returns False where the answer is no. Errors that the user can mend
  become a line on stderr. Nothing that takes long is silent.
  """
  try:
    with speaking.never_silent(), speaking.doing("working"):
      return NO if work() is False else DONE
  except (UserError, ValueError, OSError, ImportError) as error:
    # A progress bar may have left the cursor in its line.
    start = "\n" if sys.stderr.isatty() else ""
    print(f"{start}error: {error}{_install(error)}", file=sys.stderr)
    return WRONG


def _install(error: Exception) -> str:
  """Returns how to install what a command asks for, if that is missing."""
  if not isinstance(error, ModuleNotFoundError):
    return ""
  return (
    ". A command needs everything: pip install 'gc_jax[all]', or -r "
    "requirements.txt of the repository."
  )


def tell(lines: Iterable[str]) -> None:
  """Prints the lines of a command as they come."""
  with speaking.doing("working") as task:
    for line in lines:
      speaking.heard()
      print(line, flush=True)
      # "reading the model": what goes on from here.
      if line.partition(" ")[0].endswith("ing"):
        task.text = line


def fail(message: str) -> NoReturn:
  """Ends the command with a line: its arguments are wrong."""
  print(f"error: {message}", file=sys.stderr)
  sys.exit(WRONG)


def names_in(module: str, table: str) -> str:
  """Returns the names in a table, for --help; "" if nobody asked for help.

  Only a help text lists them: importing the table may take a second.
  """
  if not _asked_for_help():
    return ""
  return ", ".join(vars(importlib.import_module(module))[table])


def recipes_for_help() -> str:
  """Returns what --help says of recipes and fields; "" if nobody asked."""
  if not _asked_for_help():
    return ""
  return f"""
Recipes, and the variants that may follow after a colon, as in
configs/folder.py:gc,small. Words with a comma may follow a variant; ',smoke'
shrinks any of them to seconds, without its data:

{_recipes()}

Every field of a recipe can be changed, for example
--config.optim.lr_per_256=0.05. {_FIELDS_FILE} lists
them, with their units and defaults.
"""


def _asked_for_help() -> bool:
  return bool(set(_HELP) & set(sys.argv))


def _recipes() -> str:
  """Returns each recipe of this repository, its title and its variants."""
  if not _IS_SOURCE:
    return (
      "  none here: they are in the repository of gc_jax, not in the package. "
      "One of\n  your own is a short file, see gc_jax/docs/recipes.md."
    )
  lines = []
  for path in sorted(_RECIPES.glob("*.py")):
    text = path.read_text(encoding="utf-8")
    title = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    variants, options = _variants(path)
    if variants:
      lines += [f"  {_shown(path)}", f"    {title}"]
      names = [*(f":{name}" for name in variants), *(f",{o}" for o in options)]
      names = textwrap.wrap(" ".join(names), 72)
      lines += [f"    {line}" for line in names]
  return "\n".join(lines)


def _variants(path: pathlib.Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the variants of a recipe of this repository, and their options."""
  # Run as --config runs it; a file that cannot be is no recipe.
  with contextlib.suppress(Exception):
    recipe = runpy.run_path(str(path))
    return recipe.get("VARIANTS", ()), recipe.get("OPTIONS", ())
  return (), ()


def _shown(path: pathlib.Path) -> pathlib.Path:
  here = pathlib.Path.cwd()
  return path.relative_to(here) if path.is_relative_to(here) else path


def define_config(default: str | None, text: str) -> flags.FlagHolder:
  """Returns the flag `--config`, with its fields as `--config.field`.

  Without the flag, the file `default` is the configuration.
  """
  # Shells leave ~ alone behind an =, and the flag is read from here.
  sys.argv[1:] = map(_with_home, sys.argv[1:])
  try:
    return config_flags.DEFINE_config_file("config", default, text)
  except (AttributeError, KeyError, SyntaxError) as error:
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
    except (AttributeError, KeyError, SyntaxError) as error:
      # ml_collections on a field that does not exist.
      fail(_unknown_field(argv) or str(error))
    except (flags.Error, OSError, ValueError) as error:
      # Errors in a config file come wrapped in their own traceback.
      line = str(error).strip().splitlines()[-1].strip()
      line = re.sub(r"^(Value|Type)Error: ", "", line)
      if missing := re.fullmatch(r"flag --(\w+)=None: .* than None\.", line):
        line = f"--{missing[1]} must be given, and is not; --help says how."
      fail(_no_recipe(argv) or _unknown_field(argv) or line)
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


def _no_recipe(argv: list[str]) -> str:
  """Says which recipes there are, if --config names no file."""
  for argument in argv:
    found = re.fullmatch("--?config=([^:]*).*", argument)
    if found and not pathlib.Path(found[1]).is_file():
      return (
        f"--config={found[1]} must be the file of a recipe, and is no file. "
        f"The recipes, with their variants:\n{_recipes()}"
      )
  return ""


def _unknown_field(argv: list[str]) -> str:
  """Says which `--config.field` is unknown, and what it may stand for."""
  known = flatten(get_config().to_dict())
  for argument in argv:
    flag = argument.split("=")[0]
    name = flag.removeprefix("--config.")
    if name == flag or name in known:
      continue
    group = [field for field in known if field.startswith(f"{name}.")]
    # Of a model or a data set, most often its name is meant.
    group.sort(key=lambda field: not field.endswith(".name"))
    near = group or nearest_fields(name, meanings())
    message = (
      f"{flag!r} is a group of fields."
      if group
      else (f"Unknown field {flag!r}.")
    )
    flags_near = [f"--config.{field}" for field in near[:_MOST_NEAR]]
    if flags_near:
      message += f" Did you mean {flags_near[0]!r}?"
    if flags_near[1:]:
      message += f" Or {', '.join(flags_near[1:])}?"
    return f"{message} {_FIELDS_FILE} has them all."
  return ""
