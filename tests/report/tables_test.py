"""Tables: values, seeds, the best, the paper's layouts, every format."""

import csv
import dataclasses
import io
import re

import pytest

from gc_jax.attribution import METHODS, title_of
from gc_jax.report import artefact, describe, formats, paper, tables
from tests.report import evaluations

GC_1 = ("ResNet18 GC", "Grad-CAM, element-wise")
IMAGENET = {"data_name": "imagenet"}
COCO = {"data_name": "coco", "multi_label": True}


def _models(*made):
  return describe.group(made)


def _tables(*made):
  """Returns the first words of a title -> table, of all of some evaluations."""
  models = _models(*made)
  found = [
    *paper.make_layouts(models),
    tables.overview(models),
    *tables.measured(models),
  ]
  return {table.heading.partition(":")[0]: table for table in found}


def _full(made):
  return _tables(made)["All methods, all metrics"]


def _rows(table):
  """Returns (label, method in words) -> heading -> text."""
  return {
    (row.label, row.method): {
      column.title: cell.number
      for column, cell in zip(table.columns, row.cells, strict=True)
    }
    for row in formats.in_words(table).rows
  }


def _markdown(table):
  """Returns the table's lines, without its notes."""
  lines = formats.to_markdown(table).splitlines()
  return [line for line in lines if line.startswith("|")]


def _file(name, made):
  return formats.to_files(made, "")[name].decode()


def _csv(text):
  return list(csv.DictReader(io.StringIO(text)))


def _html(table):
  html = formats.render(
    "comparison.html",
    **dict.fromkeys(("data_name", "preface", "cards", "remarks"), ""),
    **dict.fromkeys(("chart", "robustness")),
    groups=[],
    glance=formats.for_page([[table]])[0],
    tables=[],
  )
  return html.partition("<script>")[0]


@pytest.fixture
def imagenet(tmp_path):
  """ResNet18 with GC, and a GMP file that does not say its loss."""
  return [
    evaluations.make(tmp_path / "gc", **IMAGENET),
    evaluations.make(
      tmp_path / "gmp",
      **IMAGENET,
      architecture="resnet18-gmp",
      consistency=None,
      source="files/best.pth",
      ch=35.0,
      accuracy=80.0,
    ),
  ]


# The paper's tables.


def test_table_1_has_both_variants_the_papers_rows_and_the_controls(imagenet):
  table = _tables(*imagenet)["Table 1"]
  assert table.heading == "Table 1: Grad-CAM, ImageNet"
  rows = _rows(table)
  assert list(rows) == [
    GC_1,
    ("ResNet18 GMP (best.pth)", "Grad-CAM, element-wise"),
    ("ResNet18 GC", "Grad-CAM"),
    ("ResNet18 GMP (best.pth)", "Grad-CAM"),
    ("paper: ResNet18 GC", "Grad-CAM, both variants"),
    ("paper: ResNet18 GMP", "Grad-CAM, variant uncertain"),
    ("paper: ResNet18 GMP+GC", "Grad-CAM, variant uncertain"),
    ("Uniform map", "control"),
    ("Centred Gaussian", "control"),
  ]
  assert rows["ResNet18 GC", "Grad-CAM"] == {
    "Top-1": "86.50",
    "PG": "69.25",
    "SPG": "49.50 ± 0.12",
    "CH": "29.00",
    "NQH": "41.00",
  }
  paper = rows["paper: ResNet18 GC", "Grad-CAM, both variants"]
  assert list(paper.values()) == [
    *("67.74", "80.00", "65.85 ± 0.01", "57.73", "7.62")
  ]
  uniform = rows["Uniform map", "control"]
  assert (uniform["NQH"], uniform["Top-1"]) == ("75.00", "")
  notes = " ".join(table.notes)
  assert "not certain" in notes and "Not measured" not in notes


@pytest.mark.parametrize(
  "changes, quoted",
  [
    ({"data_name": "context_digits"}, []),
    (IMAGENET | {"architecture": "vgg16"}, []),
    (IMAGENET | {"architecture": "resnet34"}, []),
    (IMAGENET | {"consistency": False}, ["Baseline"]),
    (IMAGENET | {"consistency": None}, ["Baseline", "GC"]),
  ],
)
def test_the_paper_stands_only_beside_what_it_measured(
  tmp_path, changes, quoted
):
  made = _tables(evaluations.make(tmp_path / "e", **changes))
  layouts = [start for start in made if start.startswith("Table")]
  own = changes["data_name"] == "imagenet"
  assert layouts == (["Table 1", "Table 5", "Table 6"] if own else [])
  for start, table in made.items():
    labels = [row.label for row in table.rows if row.is_reference]
    wanted = quoted if start == "Table 1" else []
    assert labels == [f"paper: ResNet18 {name}" for name in wanted]
    if start.startswith("Table") and not wanted:
      assert "none stands here" in table.notes[0]


def test_pictures_of_several_classes_take_table_2(tmp_path):
  made = _tables(
    evaluations.make(tmp_path / "e", **COCO, architecture="resnet18-gmp")
  )
  assert list(made)[:3] == ["Table 2", "Table 3", "Table 4"]
  assert made["Table 2"].heading == "Table 2: Grad-CAM, MS-COCO"
  ours = ("ResNet18 GMP+GC", "cMWP")
  rows = _rows(made["Table 2"])
  paper = rows["paper: ResNet18 GMP+GC", "Grad-CAM, variant uncertain"]
  assert list(paper.items())[:3] == [
    ("F1-PerClass", "61.99"),
    ("F1-Overall", "68.93"),
    ("PG", "66.10"),
  ]
  third, fourth = (_rows(made[name]) for name in ("Table 3", "Table 4"))
  assert third[ours]["CH"] == "26.00"
  assert third["paper: ResNet18 GMP+GC", "cMWP"]["NQH"] == "74.86"
  assert fourth["paper: ResNet18 GMP+GC", "FullGrad"]["SPG"] == "27.18 ± 0.00"
  attacked = made["Accuracy under attack"]
  assert _rows(attacked)["ResNet18 GMP+GC", "FGSM"]["clean"] == "86.5"
  notes = formats.in_words(attacked).notes
  assert "F1-Overall without an attack" in notes[0]


def test_table_5_sets_the_variants_side_by_side(tmp_path):
  made = evaluations.make(tmp_path / "e", **IMAGENET, architecture="alexnet")
  rows = _rows(_tables(made)["Table 5"])
  assert rows["AlexNet GC", ""] == {
    "PG, GCAM": "69.25",
    "PG, element-wise": "70.25",
    "CH, GCAM": "29.00",
    "CH, element-wise": "30.00",
  }
  paper = rows["paper: AlexNet GC", "as headed"]
  assert list(paper.values()) == ["73.70", "76.60", "48.10", "55.20"]
  assert set(rows["Uniform map", "control"].values()) == {"48.25", "8.00"}


def test_table_6_has_fgsm_and_pgd_at_every_epsilon(tmp_path):
  made = evaluations.make(
    tmp_path / "e", **IMAGENET, architecture="resnet50-gmp"
  )
  made.results["val/fgsm_4/top1"] = 43.21  # not one of the paper's
  made.curves.robustness["fgsm"]["4"] = 43.21
  table = _tables(made)["Table 6"]
  titles = [column.title for column in table.columns]
  assert titles == ["clean"] + [f"ε = {e}" for e in (1, 2, 4, 8, 16, 32, 64)]
  rows = _rows(table)
  assert rows["ResNet50 GMP+GC", "FGSM"]["ε = 4"] == "43.21"
  within = rows["ResNet50 GMP+GC", "FGSM, any step up to ε"]
  assert (within["clean"], within["ε = 2"]) == ("86.50", "43.25")
  pgd = rows["ResNet50 GMP+GC", "PGD"]
  assert (pgd["ε = 4"], pgd["ε = 1"]) == ("", "43.25")
  paper = rows["paper: ResNet50 GMP+GC", "FGSM, ε without unit"]
  assert (paper["ε = 64"], paper["ε = 4"]) == ("2.71", "")
  notes = " ".join(table.notes)
  assert "PGD: ε = 4" in notes and "no unit of epsilon" in notes


def test_attacks_on_fewer_pictures_have_their_own_clean_number(tmp_path):
  made = evaluations.make(tmp_path / "e", **IMAGENET)
  made.results["val/pgd_0/top1"] = 91.25  # of its own pictures
  made.results["val/fgsm-few_0/top1"] = 91.25
  made.results["val/fgsm-few_5/top1"] = 12.5
  made.curves.robustness["fgsm-few"] = {"0": 91.25, "5": 12.5}
  table = _tables(made)["Table 6"]
  rows = _rows(table)
  assert rows["ResNet18 GC", "FGSM"]["clean"] == "86.50"
  assert rows["ResNet18 GC", "PGD"]["clean"] == "91.25"
  few = rows["ResNet18 GC", "FGSM, on PGD's pictures"]
  assert (few["clean"], few["ε = 5"]) == ("91.25", "12.50")
  assert (
    "Measured on the images of 100 of the 1,200 (image, class) pairs, clean "
    "ones too: FGSM, on PGD's pictures; PGD."
  ) in table.notes


def test_what_was_not_measured_is_empty_and_named(tmp_path):
  methods = ("gradcam_elementwise",)
  made = evaluations.make(tmp_path / "e", **IMAGENET, methods=methods)
  del made.results["val/gradcam_elementwise/negative_quadrants_heatmap"]
  found = _tables(made)
  assert _rows(found["Table 1"])["ResNet18 GC", "Grad-CAM"]["CH"] == ""
  notes = " ".join(found["Table 1"].notes)
  assert "Grad-CAM, element-wise: NQH; Grad-CAM: PG, SPG, CH, NQH" in notes
  found = _tables(evaluations.make(tmp_path / "c", **COCO, methods=methods))
  assert set(_rows(found["Table 3"])["ResNet18 GC", "cMWP"].values()) == {""}
  assert "cMWP: everything" in " ".join(found["Table 3"].notes)


# What was measured.


def test_accuracy_under_attack_has_its_intervals(tmp_path):
  table = _tables(evaluations.make(tmp_path / "e"))["Accuracy under attack"]
  lines = _markdown(table)
  assert "| clean ↑ | ε = 1 ↑ |" in lines[0]
  (pgd,) = [line for line in lines if "| PGD |" in line]
  assert "86.5 [84.4, 88.4] | 43.2 [0.0, 49.8]" in pgd
  assert any("Measured on the images of 100" in note for note in table.notes)


def test_the_full_table_has_every_method_with_its_intervals(tmp_path):
  made = evaluations.make(tmp_path / "e")
  table = _full(made)
  assert {row.method for row in table.rows} == {
    *evaluations.METHODS,
    *evaluations.CONTROLS,
  }
  text = formats.to_markdown(table)
  assert "| **30.0** [28.5, 31.5] |" in text  # the best of all methods
  assert "| 29.0 [27.5, 30.5] |" in text
  assert "| 3.2 |" in text  # cMWP's empty maps, a fraction in its file
  for words in (
    "All numbers in percent.",
    "95% interval",
    "Measured on 100 of the 1,200 (image, class) pairs",
    "Integrated gradients; SmoothGrad; by every method Insertion, Deletion, "
    "MaxBoxAcc 0.5, Max",
  ):
    assert words in text
  accuracy = formats.to_markdown(_tables(made)["Accuracy"])
  assert "86.5 [84.4, 88.4]" in accuracy


def test_what_is_costly_has_no_note_where_it_had_every_pair(tmp_path):
  made = evaluations.make(tmp_path / "e", num_costly_images=1200)
  for table in _tables(made).values():
    assert "Measured on" not in " ".join(table.notes)


def test_an_evaluation_of_accuracy_alone_still_has_the_papers_layouts(
  tmp_path,
):
  bare = evaluations.bare(tmp_path / "e", **IMAGENET)
  found = _tables(bare)
  layouts = [f"Table {n}" for n in (1, 5, 6)]
  assert list(found) == [*layouts, "At a glance", "Accuracy"]
  first = _rows(found["Table 1"])
  assert first["ResNet18 GC", "Grad-CAM"]["Top-1"] == "80.00"
  assert "| ResNet18 GC |  | 80.0 |" in formats.to_markdown(
    tables.overview(_models(bare))
  )
  made = list(found.values())
  texts = [_file("tables.md", made), _file("tables.tex", made)]
  for text in (*texts, *map(_html, made)):
    assert "nan" not in text.lower() and "None" not in text


def test_few_questions_have_few_tables(tmp_path):
  found = _tables(artefact.load(evaluations.write_run(tmp_path / "run")))
  assert list(found) == [
    *("At a glance", "Accuracy", "All methods, all metrics")
  ]


# Rows: seeds, the best, what is missing.


def _glance(tmp_path, *all_results, **changes):
  """Returns the overview of runs that differ by seed, and by `changes`."""
  made = []
  for seed, results in enumerate(all_results):
    own = {name: values[seed] for name, values in changes.items()}
    path = tmp_path / str(seed)
    evaluations.write_run(path, seed=seed, results=results, **own)
    made.append(artefact.load(path))
  return tables.overview(_models(*made))


def test_a_row_holds_the_numbers_of_its_run(tmp_path):
  table = _glance(tmp_path, evaluations.run_results(ch=15.0))
  assert list(_rows(table)[GC_1].values()) == [
    *("86.5", "55.2", "35.5 ± 0.1", "35.8", "15.0", "40.0")
  ]
  methods = [row.method for row in table.rows]
  assert methods == ["gradcam_elementwise", "gradcam", "uniform", "center"]


def test_seeds_become_mean_and_sample_standard_deviation(tmp_path):
  runs = [evaluations.run_results(ch=ch) for ch in (10.0, 14.0, 18.0)]
  table = _glance(tmp_path, *runs)
  cell = table.rows[0].cells["content_heatmap"]
  assert (cell.mean, cell.std) == (14.0, 4.0)
  line = _markdown(table)[2]
  assert "| ResNet18 GC | Grad-CAM, element-wise | 3 | " in line
  assert "| 14.0 ± 4.0 |" in line
  first = _csv(formats.to_csv(table))[0]
  assert first["content_heatmap_std"] == "4.0000"
  assert first["stochastic_pointing_game_sampling_std"] == "0.1250"


def test_the_best_of_each_method_is_bold_and_controls_never(tmp_path):
  worse = evaluations.run_results(ch=13.0)
  worse["val/gradcam_elementwise/negative_quadrants_heatmap"] = 44.0
  better = evaluations.run_results(ch=21.0)
  table = _glance(tmp_path, worse, better, loss__consistency_weight=[0.0, 1.0])
  lines = _markdown(table)
  assert lines[0].endswith("| CH ↑ | NQH ↓ |")
  assert lines[2].endswith("| 13.0 | 44.0 |")
  assert lines[3].endswith("| **21.0** | **40.0** |")
  assert lines[5].endswith("| **20.0** | 41.0 |")  # NQH equal: no best
  assert lines[6].startswith("| Uniform map | control |")
  assert "**" not in lines[6] + lines[7]


def test_numbers_that_print_the_same_are_both_best(tmp_path):
  scores = [evaluations.run_results(ch=ch) for ch in (21.01, 20.99, 13.0)]
  table = _glance(tmp_path, *scores, loss__consistency_weight=[1.0, 2.0, 3.0])
  assert formats.to_markdown(table).count("**21.0**") == 2


def test_quoted_rows_and_controls_are_never_best_and_take_no_best(tmp_path):
  made = [
    evaluations.make(tmp_path / "a", **COCO, ch=20.0, consistency=False),
    evaluations.make(tmp_path / "b", **COCO, ch=25.0),
  ]
  lines = _markdown(_tables(*made)["Table 3"])[2:]
  # CH: 16 and 21 are ours, the paper's 32.23 and 34.44 are higher.
  assert "| 16.00 |" in lines[0] and "| **21.00** |" in lines[1]
  assert [line.startswith("| paper: ") for line in lines[2:4]] == [True, True]
  assert not any("**" in line for line in lines[2:])
  # Nor where ours is what the paper says.
  made[1].results["val/cmwp/content_heatmap"] = 34.44
  text = formats.to_markdown(_tables(*made)["Table 3"])
  assert text.count("**34.44**") == 1
  # One model: its methods compete, and Insertion of a control is higher.
  lines = _markdown(_full(evaluations.make(tmp_path / "c")))
  best, last = 39.0 + len(METHODS), title_of([*METHODS][-1])
  assert f"| **{best}** |" in lines[-3] and last in lines[-3]
  assert f"| {best + 2} |" in lines[-1] and "**" not in lines[-1] + lines[-2]


def test_what_was_measured_on_fewer_pairs_is_never_the_best(tmp_path):
  methods = ("gradcam", "cmwp", "smoothgrad")
  made = evaluations.make(
    tmp_path / "e", methods=methods, costly_methods=("smoothgrad",)
  )
  made.results["val/smoothgrad/content_heatmap"] = 99.0  # of 100 pairs
  made.results["val/smoothgrad/max_box_acc_50"] = 77.0  # as of all methods
  rows = {line.split(" | ")[1]: line for line in _markdown(_full(made))}
  assert "| **30.0** [28.5, 31.5] |" in rows["Grad-CAM"]
  few = rows["SmoothGrad, 100 pairs"]
  assert "| 99.0 [" in few and "| **77.0** |" in few
  # Not even where it scores what the best of all pairs does.
  made.results["val/smoothgrad/content_heatmap"] = 30.0
  assert formats.to_markdown(_full(made)).count("| **30.0** [") == 1
  # On every pair it competes.
  made.results["val/smoothgrad/content_heatmap"] = 99.0
  about = dataclasses.replace(made.about, num_costly_images=1200)
  text = formats.to_markdown(_full(dataclasses.replace(made, about=about)))
  assert "| **99.0** [" in text and "pairs |" not in text
  # Two costly methods alone compete with each other.
  two = evaluations.make(
    tmp_path / "two", methods=methods[1:], costly_methods=methods[1:]
  )
  assert "| **30.0** [28.5, 31.5] |" in formats.to_markdown(_full(two))


@pytest.mark.parametrize("missing", [None, float("nan"), "absent"])
def test_a_missing_number_stays_empty_in_every_format(tmp_path, missing):
  results = evaluations.run_results()
  results["val/gradcam/content_heatmap"] = missing
  if missing == "absent":
    del results["val/gradcam/content_heatmap"]
  table = _glance(tmp_path, results)
  markdown, html = formats.to_markdown(table), _html(table)
  text = formats.to_csv(table)
  assert "nan" not in (markdown + html + text).lower()
  if missing != "absent":  # then the method is not known to be measured
    assert "|  | 41.0 |" in markdown
    assert "<td></td><td>41.0</td>" in html
    line = _csv(text)[1]
    assert (line["method"], line["content_heatmap"]) == ("gradcam", "")


def test_unknown_keys_are_left_out_and_unknown_methods_kept(tmp_path):
  made = evaluations.make(tmp_path / "e", methods=("mine", "gradcam"))
  made.results["val/per_class/ap"] = [1, 2]
  table = tables.overview(_models(made))
  methods = [row.method for row in table.rows]
  assert methods == ["gradcam", "mine", "uniform", "center"]
  assert _rows(table)["ResNet18 GC", "mine"]["CH"] == "30.0"


# Formats.


def test_labels_are_escaped_in_markdown_and_html(tmp_path):
  made = evaluations.make(tmp_path / "e", consistency=None, source="a|<b>")
  table = tables.overview(_models(made))
  assert "a\\|<b>" in formats.to_markdown(table)
  assert "a|&lt;b&gt;" in _html(table)


def test_latex_is_balanced_escaped_fits_the_text_and_says_its_packages(
  tmp_path,
):
  source = "50%_of #1 & {x}~y^2 \\ $5.pth"
  made = _tables(
    evaluations.make(
      tmp_path / "gc", consistency=None, source=source, **IMAGENET
    ),
    evaluations.make(tmp_path / "b", consistency=False, ch=20.0, **IMAGENET),
  )
  text = _file("tables.tex", list(made.values()))
  assert r"\usepackage{booktabs,graphicx}" in text.splitlines()[0]
  assert (
    r"50\%\_of \#1 \& \{x\}\textasciitilde{}y\textasciicircum{}2 "
    r"\textbackslash{} \$5.pth"
  ) in text
  assert r"CH $\uparrow$" in text and r"NQH $\downarrow$" in text
  assert r"49.50 $\pm$ 0.12" in text
  assert r"\textbf{30.00}" in text
  for environment in ("table", "tabular"):
    begun = text.count(rf"\begin{{{environment}}}")
    assert begun == text.count(rf"\end{{{environment}}}")
  # LaTeX numbers them.
  assert r"\caption{Grad-CAM, ImageNet." in text
  labels = re.findall(r"\\label\{tab:([a-z0-9-]+)\}", text)
  assert len(labels) == len(set(labels)) == 7
  continued = text.count(r"\addtocounter{table}{-1}")
  assert text.count(r"\begin{table}") == 7 + continued > 7
  for table in text.split(r"\begin{table}")[1:]:
    table = table.partition(r"\end{table}")[0]
    blocks = table.count(r"\begin{tabular}")
    assert table.count(r"\\") + 4 * blocks < 60 or blocks == 1  # a page
  assert not re.search(r"caption\{Table", text)
  # Those too wide go on below, and the width is that of the text at most.
  assert text.count(r"\begin{tabular}") > 7
  fitted = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}"
  assert text.count(fitted) == text.count(r"\begin{tabular}")
  for line in text.splitlines():
    if line.endswith(r"\\"):
      plain = re.sub(r"\$[^$]*\$|\\[a-z]+|[{}]", "", line)
      assert len(plain) < 110 or line.count(" & ") == 2
  # Without comments, escaped letters and maths.
  bare = "\n".join(x for x in text.splitlines() if not x.startswith("%"))
  bare = re.sub(r"\\[&%$#_{}]", "", bare)
  bare = re.sub(r"\$\\?[a-z-]+\$", "", bare)
  assert bare.isascii() and not set("%#_$^~") & set(bare)
  depth = 0
  for character in bare:
    depth += {"{": 1, "}": -1}.get(character, 0)
    assert depth >= 0
  assert depth == 0
  for tabular in text.split(r"\begin{tabular}{")[1:]:
    columns = len(tabular[: tabular.index("}")])
    body = tabular[: tabular.index(r"\bottomrule")]
    rows = [x for x in body.splitlines() if x.endswith(r"\\")]
    assert rows
    for row in rows:
      assert len(re.findall(r"(?<!\\)&", row)) == columns - 1


def test_csv_has_a_line_for_every_cell(imagenet):
  made = list(_tables(*imagenet).values())
  lines = _csv(_file("tables.csv", made))
  assert len(lines) == sum(len(t.rows) * len(t.columns) for t in made)

  def find(*names, **wanted):
    (line,) = [x for x in lines if wanted.items() <= x.items()]
    return [line[name] for name in names]

  assert find(
    *("value", "sampling_std"),
    table="Table 1: Grad-CAM, ImageNet",
    kind="paper",
    model="paper: ResNet18 GC",
    metric="stochastic_pointing_game",
  ) == ["65.8500", "0.0100"]
  control = {"table": "Table 1: Grad-CAM, ImageNet", "method": "uniform"}
  assert find("kind", "value", **control, metric="top1") == ["control", ""]
  everything = {"table": "All methods, all metrics", "kind": "model"}
  assert find(
    *("value", "low", "high", "num_runs"),
    **everything,
    model="ResNet18 GC",
    method="gradcam",
    metric="content_heatmap",
  ) == ["29.0000", "27.5000", "30.5000", "1"]
