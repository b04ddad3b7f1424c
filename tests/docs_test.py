"""What the README and gc_jax/docs name is there: files, anchors, fields, flags.

Each check takes a page's text and folder and returns sentences, one for each
thing that is not there.
"""

import ast
import collections
import contextlib
import functools
import importlib
import itertools
import pathlib
import re

import pytest

from configs import base
from gc_jax.models import MODELS
from gc_jax.runtime.config import flatten

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "configs/references/miniature/README.md"
PAGES = [
  ROOT / "README.md",
  *sorted((ROOT / "gc_jax/docs").glob("*.md")),
  RESULTS,
]
COMMANDS = [f"gc_jax.{path.stem}" for path in ROOT.glob("gc_jax/[!_]*.py")]
BENCHMARKS = [
  f"tests.benchmarks.{path.stem}" for path in ROOT.glob("tests/benchmarks/*.py")
]
PLACES = ("configs/", "gc_jax/", "launch/", "tests/")
# Commands of others, whose flags are theirs.
FOREIGN = ("docker ", "pip ", "apt-get ", "xprof ")


def prose(text):
  """Returns a page without its code blocks."""
  return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def code(text):
  """Returns the spans and the lines of blocks, continued lines as one."""
  blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  spans = re.findall(r"`([^`]+)`", prose(text))
  return [" ".join(each.split()) for each in [*lines, *spans]]


def anchors(text):
  """Returns what GitHub makes of a page's headings."""
  headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
  plain = [re.sub(r"[^\w\- ]", "", each).lower() for each in headings]
  return {each.replace(" ", "-") for each in plain}


def dead_links(text, folder):
  for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
    if re.match("https?://", link):
      continue
    path, _, anchor = link.partition("#")
    target = folder / path if path else None
    if target and not target.exists():
      yield f"{link}: no such file"
    elif anchor and anchor not in anchors(
      target.read_text() if target else text
    ):
      yield f"{link}: no such heading"


def unknown_fields(text, folder):
  known = {*flatten(base.get_config().to_dict()), "field"}
  for field in re.findall(r"--config\.([\w.]*\w)", text):
    if field not in known:
      yield f"--config.{field}: no such field"


def missing_files(text, folder):
  for each in code(text):
    for word in re.split(r"[\s=]", each):
      path, _, variant = word.partition(":")
      path = path.rstrip("/,")
      if not word.startswith(PLACES) or "..." in word or "*" in word:
        continue
      if not (ROOT / path).exists():
        yield f"{word}: no such file"
      elif variant:
        recipe = importlib.import_module(
          path.removesuffix(".py").replace("/", ".")
        )
        try:
          recipe.get_config(variant.strip(",."))
        except ValueError as error:
          yield f"{word}: {error}"


def unknown_names(text, folder):
  """Dotted names of gc_jax: modules, and what is in them."""
  for each in code(text):
    for name in re.findall(r"\b(?:gc_jax|tests)(?:\.\w+)+", each):
      parts = name.split(".")
      # Some commands are also functions, and none is a module to import.
      found = name in (*COMMANDS, *BENCHMARKS) or _is_name(parts)
      if not found:
        yield f"{name}: no such name"


def _is_name(parts):
  for length in range(len(parts), 0, -1):
    with contextlib.suppress(ImportError):
      thing = importlib.import_module(".".join(parts[:length]))
      for part in parts[length:]:
        thing = getattr(thing, part, None)
      return thing is not None
  return False


@functools.cache
def flags_of(command):
  """Returns the flags that the parser of a module or a script defines."""
  if command == "launch/preflight.sh":
    return flags_of("gc_jax.preflight") | {"dry-run"}
  if command.endswith(".sh"):
    text = (ROOT / command).read_text()
    words = re.findall(r'parse_arguments "([^"]*)"', text)
    flags = re.findall(r"(?:^|\s)([a-z-]+)", " ".join(words))
    return {*flags, "config", "workdir", "help", "dry-run"}
  path = ROOT.joinpath(*command.split(".")).with_suffix(".py")
  flags = {"help"}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      called = ast.unparse(node.func)
      named = [a.value for a in node.args if isinstance(a, ast.Constant)]
      named = [name for name in named if isinstance(name, str)]
      flags |= {name[2:] for name in named if name.startswith("--")}
      if called.startswith("flags.DEFINE_"):
        flags.add(named[0])
      elif called == "cli.define_config":
        flags.add("config")
  return flags


def unknown_flags(text, folder):
  everywhere = set()
  for command in (*COMMANDS, *BENCHMARKS):
    everywhere |= flags_of(command)
  for script in (ROOT / "launch").glob("*.sh"):
    everywhere |= flags_of(f"launch/{script.name}")
  for each in code(text):
    if each.startswith(FOREIGN):
      continue
    ours = re.search(r"python -m (\S+)|(launch/\w+\.sh)", each)
    command = ours and (ours[1] or ours[2])
    known = flags_of(command) if command else everywhere
    for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", each):
      if flag not in known:
        yield f"--{flag} of {command or each!r}: no such flag"


CHECKS = (
  dead_links,
  unknown_fields,
  missing_files,
  unknown_names,
  unknown_flags,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_all_that_pages_name_is_there(check):
  found = []
  for page in PAGES:
    missing = check(page.read_text(), page.parent)
    found += [f"{page.name}: {sentence}" for sentence in missing]
  assert found == []


@pytest.mark.parametrize(
  ("check", "text"),
  [
    (dead_links, "[a](gc_jax/docs/nothing.md)"),
    (dead_links, "[a](gc_jax/docs/faq.md#nothing)"),
    (dead_links, "# One\n[a](#two)"),
    (unknown_fields, "`--config.loss.consistancy_weight=1`"),
    (missing_files, "`gc_jax/nothing.py`"),
    (missing_files, "```bash\nx --config=configs/folder.py:none\n```"),
    (unknown_names, "`python -m gc_jax.nothing`"),
    (unknown_names, "`gc_jax.method.cam.nothing`"),
    (unknown_flags, "```bash\npython -m gc_jax.export \\\n  --methods=a\n```"),
    (unknown_flags, "```bash\nlaunch/gpus.sh --nodes=2\n```"),
    (unknown_flags, "```bash\nlaunch/gke.sh --default=2\n```"),
    (unknown_flags, "Use `--topolgy`."),
    (unknown_flags, "`python -m tests.benchmarks.step --image=64`"),
  ],
)
def test_each_check_finds_what_is_missing(check, text):
  assert len(list(check(text, ROOT))) == 1


def test_nothing_is_missing_where_all_is_there():
  text = """# One (and) two
[a](README.md) [b](#one-and-two) [c](https://x.org) `--config.batch_size=8`
`configs/folder.py:gc,smoke` `gc_jax.data.load` `docker run --shm-size=8g`
`launch/gpus.sh --gpus=2 --config=... --config.seed=1` `--topology`
"""
  assert [x for check in CHECKS for x in check(text, ROOT)] == []


def test_the_table_of_recipes_is_what_configs_offer():
  page = (ROOT / "gc_jax/docs/recipes.md").read_text()
  rows = re.findall(
    r"^\| \[(\w+)\.py\]\([^)]*\) \|.*\|(.*)\|$", page, re.MULTILINE
  )
  table = {}
  for name, row in rows:
    # "`a` `b`, then `-c` `-d`" is a-c, a-d, b-c, b-d.
    parts = [re.findall("`([^`]+)`", part) for part in row.split(", then ")]
    table[name] = tuple(map("".join, itertools.product(*parts)))
  offered = {}
  for path in sorted((ROOT / "configs").glob("*.py")):
    if path.stem != "base":
      offered[path.stem] = variants(path.stem)
  assert table == offered


def variants(name):
  recipe = importlib.import_module(f"configs.{name}")
  with pytest.raises(ValueError) as raised:
    recipe.get_config("no such variant")
  found = re.search("Known: (.*), each also with (.*); or", str(raised.value))
  options = [o.strip("'") for o in found[2].split(" or ") if "smoke" not in o]
  return (*found[1].split(", "), *options)


def test_the_page_of_export_names_every_model_that_can_be_exported():
  """Those with maximum pooling by their plain names."""
  page = (ROOT / "gc_jax/docs/export.md").read_text()
  listed = page.partition("\nModels: ")[2].partition("\n\n")[0]
  has_code = {name for name, known in MODELS.items() if known.torch_code}
  named = {*re.findall(r"`([\w-]+)`", listed)} - {"-gmp"}
  assert named == {name.removesuffix("-gmp") for name in has_code}


def test_the_readmes_claims_are_those_of_the_results():
  cells = lambda line: [each.strip() for each in line.split("|")[1:-1]]
  rows = lambda text: re.findall(r"^\| \d+ \| .*\|$", text, re.MULTILINE)
  page = RESULTS.read_text().partition("## The claims by set")[0]
  known, holding = {}, {}
  for number, claim, _, difference, _, p, verdict, on, _ in map(
    cells, rows(page)
  ):
    known[number] = [claim, difference, p, verdict]
    holding[number] = on
  readme = (ROOT / "README.md").read_text()
  sentences = " ".join(readme.split())
  shown = {number: found for number, *found in map(cells, rows(readme))}
  assert len(shown) >= 8
  assert shown == {number: known[number] for number in shown}
  (made,) = re.findall(r"\*\*Does it hold\?\*\* (\d+) small", readme)
  assert re.search(rf"^{made} of \d+ runs are finished", page, re.MULTILINE)
  verdicts = collections.Counter(found[-1] for found in known.values())
  holds, fails, not_shown, too_few = map(
    verdicts.pop, ("holds", "does not", "not shown", "too few runs")
  )
  assert not verdicts
  assert f"Of {len(known)} claims, " in sentences
  counted = f"{holds} hold, {fails} do not, and {not_shown + too_few} are not "
  assert f"{counted}shown, {too_few} of them for want of runs." in sentences
  alone = "digits and fashion show claim 15, and digits claims 13 and 14."
  assert alone in sentences
  assert holding["15"] == "digits, fashion"
  assert holding["13"] == holding["14"] == "digits"
