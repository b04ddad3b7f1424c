"""python -m gc_jax.explain, end to end, on photographs."""

import json
import pathlib
import runpy
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

import gc_jax
from gc_jax import cli, models, torch_io
from gc_jax.attribution import METHODS, Method
from gc_jax.data import image_files
from gc_jax.inference import trained
from gc_jax.report import pictures
from tests.smoke import unlike_new

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def explain(monkeypatch, capsys):
  """Runs the command in this process, which compiles each shape once."""

  def explain(*args):
    monkeypatch.setattr(sys, "argv", ["explain", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
      runpy.run_module("gc_jax.explain", run_name="__main__")
    return types.SimpleNamespace(
      status=exit_.value.code, **capsys.readouterr()._asdict()
    )

  return explain


@pytest.fixture
def refused(explain, monkeypatch):
  """Runs the command, which must fail before it compiles or writes."""

  def no_method(*_):
    raise AssertionError("a method ran")

  for method in METHODS:
    monkeypatch.setitem(METHODS, method, no_method)

  def refused(*args):
    done = explain(*args)
    assert done.status == 2
    # Before it, a busy machine may only tell what takes long.
    told = [x for x in done.err.splitlines() if not x.startswith("still ")]
    assert told[0].startswith("error: ")
    assert "wrote" not in done.out
    return done.err

  return refused


@pytest.fixture
def folder(tmp_path, photographs):
  """Five pictures in three shapes and modes."""
  folder = tmp_path / "pictures"
  folder.mkdir()
  for name in ["astronaut.png", "camera.png", "gravel.png", "rocket.jpg"]:
    shutil.copy(photographs / name, folder)
  shutil.copy(photographs / "horse.png", folder)
  return folder


@pytest.fixture
def explained(explain, tmp_path):
  """Runs the command, which must succeed; returns its output and entries."""

  def explained(*args, out=tmp_path / "out"):
    done = explain(*args, f"--out={out}")
    assert done.status == 0, done.err
    assert unlike_new(out) == []
    text = (out / "explanations.json").read_text()
    return done.out, json.loads(text)

  return explained


def test_the_function_is_not_hidden_by_the_command_of_its_name(smoke_run):
  script = """
import gc_jax
try:
  import gc_jax.explain
except ImportError as error:
  print(error)
assert callable(gc_jax.explain) and gc_jax.explain.__name__ == "explain"
from gc_jax import explain
assert explain is gc_jax.explain
"""
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", script],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "is a command, python -m gc_jax.explain, and a fun" in done.stdout


def test_the_command_runs_without_a_warning_and_leaves_the_run_alone(
  smoke_run, photographs, tmp_path, compilation_cache
):
  tell = lambda: {p: p.stat().st_mtime_ns for p in smoke_run.rglob("*")}
  before = tell()
  out = tmp_path / "out"
  done = subprocess.run(
    [
      *[sys.executable, "-W", "error", "-m", "gc_jax.explain"],
      str(photographs / "rocket.jpg"),
      *[f"--workdir={smoke_run}", f"--out={out}", "--size=16"],
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=compilation_cache,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  names = ["explanations.json", "index.html", "index_files"]
  names += [f"rocket.gradcam_elementwise.{suffix}" for suffix in ("npy", "png")]
  assert sorted(path.name for path in out.iterdir()) == names
  assert done.stdout.startswith(
    "found 1 picture\nreading the model\n"
    "compiling for 16 by 24 pixels, shape 1 of 1\n"
    f"wrote {out / names[4]} and .npy: '"
  )
  assert done.stdout.endswith(
    f"\nwrote {out / names[0]}: 1 explanation\n"
    f"wrote {out / names[1]}: open it in a browser\n"
  )
  assert tell() == before


def test_maps_are_those_of_the_methods_on_the_runs_model(
  explained, smoke_run, folder, tmp_path
):
  shutil.copy(folder / "gravel.png", folder / "z.png")  # a shape seen before
  names = ("gradcam_elementwise", "fullgrad")  # of cells, and of pixels
  flags = ["--size=16", f"--method={','.join(names)}", "--batch_size=2"]
  _, told = explained(folder, f"--workdir={smoke_run}", *flags)
  files = sorted(str(path) for path in folder.iterdir())
  assert [e["file"] for e in told] == [f for f in files for _ in names]
  assert [e["method"] for e in told] == [*names] * len(files)
  graphdef, state = nnx.split(gc_jax.load(smoke_run))

  @jax.jit
  def directly(state, pixels, target):
    model = nnx.merge(graphdef, state)
    logits = model.classify(model.features(model.normalize(pixels)))
    return logits, {m: METHODS[m](model, pixels, target) for m in names}

  for e in told:
    path = pathlib.Path(e["file"])
    image = image_files.read(path)
    height, width = e["size"]
    assert image.shape == (height, width, 3)
    scale = 16 / min(height, width)
    assert e["model_size"] == [round(height * scale), round(width * scale)]
    pixels = jnp.asarray(image_files.read(path, tuple(e["model_size"])))[None]
    # One by one: float32 sums run in another order than in a batch.
    logits, expected = directly(state, pixels, jnp.array([[e["target"]]]))
    logits = np.asarray(logits[0])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert e["predicted"] == e["target"] == int(logits.argmax())
    assert e["predicted_name"] == e["target_name"] == str(e["target"])
    assert e["target_probability"] == pytest.approx(
      float(probabilities[e["target"]]), rel=1e-4
    )
    assert e["predicted_probability"] == e["target_probability"]
    highest = np.argsort(-logits)[:3]
    assert [each["id"] for each in e["top"]] == list(highest)
    assert [each["name"] for each in e["top"]] == list(map(str, highest))
    np.testing.assert_allclose(
      [each["probability"] for each in e["top"]],
      probabilities[highest],
      rtol=1e-4,
    )
    assert e["model"] == f"{smoke_run}, step 8"
    cam = np.load(tmp_path / "out" / e["map"])
    assert cam.dtype == np.float32 and list(cam.shape) == e["map_shape"]
    np.testing.assert_allclose(
      cam, expected[e["method"]][0, 0], rtol=1e-4, atol=1e-6
    )
    assert e["map_is_empty"] == (not cam.any())
    with Image.open(tmp_path / "out" / e["overlay"]) as picture:
      np.testing.assert_array_equal(
        np.asarray(picture),
        pictures.heat_overlay(image, cam, seen=tuple(e["model_size"])),
      )
  assert not all(e["map_is_empty"] for e in told)


def test_a_shape_is_compiled_once_however_many_pictures_have_it(
  explained, monkeypatch, smoke_run, photographs
):
  traced = []

  def counted(model, images, targets):
    traced.append(images.shape)
    return METHODS["gradcam"](model, images, targets)

  method = Method("Counted", counted, METHODS["gradcam"].layer)
  monkeypatch.setitem(METHODS, "counted", method)
  names = ["astronaut", "brick", "camera", "grass", "gravel"]
  _, told = explained(
    *[photographs / f"{name}.png" for name in names],
    *[f"--workdir={smoke_run}", "--size=16", "--batch_size=2"],
    "--method=counted",
  )
  assert traced == [(2, 16, 16, 3)]
  assert len(told) == 5


def test_a_class_is_chosen_by_name_or_id(
  explained, monkeypatch, smoke_run, photographs, tmp_path
):
  loaded = trained.load_model(smoke_run)
  shifted = (*"123456789", "bird")  # the class of id 0 is "1"
  renamed = trained.LoadedModel(
    loaded.model, loaded.name, shifted, True, 16, "somewhere"
  )
  monkeypatch.setattr(trained, "load_model", lambda *_: renamed)
  pixels = image_files.read(photographs / "rocket.jpg", (16, 24))
  logits = np.asarray(gc_jax.predict(loaded.model, pixels[None]))[0]
  for target, name, i in [("bird", "bird", 9), ("9", "9", 8), ("0", "1", 0)]:
    flags = ["--workdir=x", f"--target={target}"]
    printed, (e,) = explained(
      photographs / "rocket.jpg", *flags, out=tmp_path / target
    )
    assert (e["target"], e["target_name"]) == (i, name)
    assert e["model_size"] == [16, 24]
    assert e["model"] == "somewhere"
    # Several labels: each class has a sigmoid of its own.
    assert e["predicted"] == logits.argmax()
    for who in ("target", "predicted"):
      assert e[f"{who}_probability"] == pytest.approx(
        1 / (1 + np.exp(-float(logits[e[who]]))), rel=1e-4
      )
    note = "note: --target=9 is taken for the class of that name, which has"
    assert (note in printed) == (target == "9")


def test_explanations_are_replaced_only_if_asked(
  explain, explained, smoke_run, folder, tmp_path
):
  out = tmp_path / "out"
  flags = [f"--workdir={smoke_run}", "--size=16"]
  camera, gravel = folder / "camera.png", folder / "gravel.png"
  explained(camera, *flags)
  read = lambda: {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
  before = read()
  done = explain(camera, *flags, "--target=3", f"--out={out}")
  assert done.status == 2
  assert "--out must not hold files of the same name" in done.err
  assert read() == before
  explained(gravel, *flags)  # others join them
  _, told = explained(camera, *flags, "--target=3", "--overwrite")
  assert told[0]["overlay"].startswith("gravel")
  assert told[1]["overlay"].startswith("camera") and told[1]["target"] == 3


def test_what_was_written_before_ctrl_c_is_indexed_and_not_explained_itself(
  explain, explained, smoke_run, folder, monkeypatch, handlers
):
  out = folder / "out"
  flags = [folder, f"--workdir={smoke_run}", "--batch_size=1", "--size=0"]
  tell = cli.tell

  def tell_until_written(lines):
    for line in lines:
      tell([line])
      if line.startswith("wrote "):
        raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(cli, "tell", tell_until_written)
    done = explain(*flags, f"--out={out}")
  assert done.status == 130
  entries = json.loads((out / "explanations.json").read_text())
  assert [entry["overlay"] for entry in entries] == [
    path.name for path in out.glob("*.png")
  ]
  assert (out / "index.html").exists()
  said, entries = explained(*flags, "--overwrite", out=out)
  assert said.startswith("found 5 pictures\n")
  assert len(entries) == 5


def test_many_shapes_are_rounded_and_said(
  explained, smoke_run, photographs, tmp_path
):
  folder = tmp_path / "strips"
  folder.mkdir()
  photograph = image_files.read(photographs / "rocket.jpg")
  widths = (16, 18, 20, 22, 24)
  for width in widths:
    strip = Image.fromarray(photograph[200:216, 300 : 300 + width])
    strip.save(folder / f"{width}.png")
  printed, told = explained(
    folder, f"--workdir={smoke_run}", "--size=16", "--max_shapes=2"
  )
  assert (
    "note: sides are rounded to multiples of 2 pixels for the model, as the "
    "pictures have more than 2 shapes; 5 remain. --max_shapes changes that."
  ) in printed
  assert [e["model_size"] for e in told] == [[16, width] for width in widths]


def test_size_0_gives_the_model_each_pictures_own_size(
  explained, smoke_run, photographs, tmp_path
):
  picture = photographs / "no_time_for_that_tiny.gif"  # 14 by 25, animated
  _, (e,) = explained(picture, f"--workdir={smoke_run}", "--size=0")
  assert e["size"] == e["model_size"] == [25, 14]
  with Image.open(tmp_path / "out" / e["overlay"]) as picture:
    assert picture.size == (14, 25)


def test_a_pytorch_file_is_explained_with_its_architecture(
  explained, refused, monkeypatch, photographs, tmp_path
):
  path = tmp_path / "model.pth"
  weights = torch_io.names.to_torch(models.create("resnet8-small", 10))
  torch.save({key: torch.from_numpy(v) for key, v in weights.items()}, path)
  flags = [photographs / "microaneurysms.png", f"--checkpoint={path}"]
  told = refused(*flags, f"--out={tmp_path / 'none'}")
  assert "It looks like --arch=resnet8-small, or resnet8-small-gmp" in told
  flags.append("--arch=resnet8-small")
  told = refused(*flags, "--target=cat", f"--out={tmp_path / 'none'}")
  assert (
    "--target must be predicted, or an id in 0..9; it is 'cat'. The model "
    "names no classes."
  ) in told
  monkeypatch.undo()  # methods run again
  printed, (e,) = explained(*flags, "--target=4")
  assert e["model_size"] == [224, 224] and e["size"] == [102, 102]
  assert e["target"] == 4 and e["target_name"] is None
  assert "and .npy: class 4 " in printed


def test_a_training_checkpoint_is_explained_with_the_outputs_asked_for(
  explained, photographs, tmp_path, caplog
):
  model = models.create("resnet8-small", 10)
  weights = torch_io.names.to_torch(model)
  state_dict = {f"model.{k}": torch.from_numpy(v) for k, v in weights.items()}
  torch.save({"state_dict": state_dict, "epoch": 3}, tmp_path / "last.ckpt")
  picture = photographs / "microaneurysms.png"
  flags = [picture, f"--checkpoint={tmp_path / 'last.ckpt'}", "--size=16"]
  flags += ["--arch=resnet8-small", "--target=4"]
  pixels = image_files.read(picture, (16, 16))
  (logits,) = np.asarray(gc_jax.predict(model, pixels[None]), np.float64)
  probabilities = {
    "softmax": np.exp(logits[4]) / np.exp(logits).sum(),
    "sigmoid": 1 / (1 + np.exp(-logits[4])),
  }
  note = "last.ckpt does not say whether its classes exclude each other; taken"
  for asked in (None, "softmax", "sigmoid"):
    outputs = asked or "softmax"
    more = [f"--outputs={asked}"] if asked else []
    printed, (e,) = explained(*flags, *more, out=tmp_path / f"out{asked}")
    assert e["outputs"] == outputs
    expected = pytest.approx(probabilities[outputs], rel=1e-4)
    assert e["target_probability"] == expected
    assert (note in printed) == (asked is None)
  assert "last.ckpt: 'model.' taken off its keys." in caplog.text


def test_outputs_are_the_models_own_where_it_says_so(
  refused, smoke_run, photographs, tmp_path
):
  picture, out = photographs / "rocket.jpg", f"--out={tmp_path / 'out'}"
  told = refused(picture, out, f"--workdir={smoke_run}", "--outputs=sigmoid")
  assert "says 'softmax', and 'sigmoid' was asked for. Leave it out." in told
  path = tmp_path / "a.pth"
  metadata = torch_io.Metadata("resnet8-small", multi_label=True)
  torch_io.save_model(path, models.create("resnet8-small", 3), metadata)
  told = refused(picture, out, f"--checkpoint={path}", "--outputs=softmax")
  assert "says 'sigmoid', and 'softmax' was asked for. Leave it out." in told
  told = refused(picture, out, f"--checkpoint={path}", "--outputs=sigmoyd")
  assert "Unknown --outputs='sigmoyd'." in told and "'sigmoid'?" in told


def test_a_model_of_nans_explains_nothing(explain, photographs, tmp_path):
  model = models.create("resnet8-small", 10)
  model.fc.bias[...] = model.fc.bias[...].at[3].set(np.nan)
  metadata = torch_io.Metadata("resnet8-small")
  torch_io.save_model(tmp_path / "model.safetensors", model, metadata)
  done = explain(
    photographs / "microaneurysms.png",
    f"--checkpoint={tmp_path}/model.safetensors", f"--out={tmp_path / 'out'}",
  )  # fmt: skip
  assert done.status == 2
  assert (
    f"The logits of {tmp_path}/model.safetensors must be finite" in done.err
  )
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ["--method=gradcam,gradcan"],
      "Unknown --method='gradcan'. Known: gradcam",
    ),
    (["--target=predictd"], "is 'predictd'. Did you mean 'predicted'?"),
    (["--target=10"], "an id in 0..9, or a name; it is '10'. Count from 0."),
    (["--size=-1"], "--size must be at least 0; it is -1."),
    (["--batch_size=0"], "--batch_size must be at least 1; it is 0."),
    (["--max_shapes=0"], "--max_shapes must be at least 1; it is 0."),
    (["--arch=resnet18"], "--arch goes with --checkpoint; a --workdir knows"),
    (["no/such.png"], "no/such.png does not exist"),
  ],
)
def test_an_invalid_flag_is_refused(
  refused, smoke_run, folder, tmp_path, flags, message
):
  out = tmp_path / "out"
  told = refused(folder, f"--workdir={smoke_run}", f"--out={out}", *flags)
  assert message in told
  assert not out.exists()


def test_every_unreadable_picture_is_named_before_anything_happens(
  refused, folder, tmp_path
):
  for name in ["rocket.jpg", "camera.png"]:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
  out = tmp_path / "out"
  # Even before the run, which does not exist, is looked for.
  told = refused(folder, "--workdir=nowhere", f"--out={out}")
  assert "rocket.jpg must be a picture" in told
  assert "camera.png must be a picture" in told
  assert "gravel" not in told and "nowhere" not in told
  assert not out.exists()


def test_unreadable_pictures_are_left_out_and_counted_if_asked(
  explained, refused, smoke_run, folder, tmp_path, monkeypatch
):
  flags = [folder, f"--workdir={smoke_run}", "--size=16"]
  for name in ["rocket.jpg", "camera.png"]:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
  told = refused(*flags, f"--out={tmp_path / 'out'}")
  assert told.endswith("leave out what cannot be read by --on_error=skip.\n")
  monkeypatch.undo()  # methods run again
  printed, told = explained(*flags, "--on_error=skip")
  assert [pathlib.Path(e["file"]).stem for e in told] == [
    *("astronaut", "gravel", "horse")
  ]
  skipped = tmp_path / "out" / "skipped.json"
  assert f"skipped 2 pictures that cannot be read; {skipped} says" in printed
  first, second = json.loads(skipped.read_text())
  assert first["file"] == str(folder / "camera.png")
  assert "rocket.jpg must be a picture" in second["reason"]
  # Mended, it is no longer among them.
  shutil.copy(ROOT / ".assets" / "report.jpg", folder / "rocket.jpg")
  explained(folder / "rocket.jpg", *flags[1:])
  (left,) = json.loads(skipped.read_text())
  assert left == first


def test_nothing_is_explained_if_no_picture_can_be_read(
  refused, smoke_run, tmp_path
):
  (tmp_path / "a.png").write_text("no picture")
  flags = [f"--workdir={smoke_run}", f"--out={tmp_path / 'out'}"]
  told = refused(tmp_path, *flags, "--on_error=skip")
  assert "a.png must be a picture" in told and "--on_error" not in told
  told = refused(tmp_path, *flags, "--on_error=ignore")
  assert "Unknown --on_error='ignore'. Known: fail, skip." in told


def test_class_folders_are_read_and_tell_the_true_class(
  explained, smoke_run, photographs, tmp_path
):
  for name, place in [("rocket.jpg", "3"), ("horse.png", "elsewhere")]:
    (tmp_path / "val" / place).mkdir(parents=True)
    shutil.copy(photographs / name, tmp_path / "val" / place)
  flags = [f"--workdir={smoke_run}", "--size=16"]
  _, told = explained(tmp_path / "val", *flags)
  assert [(e["true"], e["true_name"]) for e in told] == [(3, "3"), (None, None)]
  # What it wrote there itself is no picture of yours.
  within = tmp_path / "val" / "seen"
  for _ in range(2):
    printed, told = explained(
      tmp_path / "val", *flags, "--overwrite", out=within
    )
    assert "found 2 pictures\n" in printed and len(told) == 2


def test_classes_of_a_pytorch_file_are_named_by_a_file(
  explained, refused, photographs, tmp_path, monkeypatch
):
  path = tmp_path / "model.pth"
  weights = torch_io.names.to_torch(models.create("resnet8-small", 3))
  torch.save({key: torch.from_numpy(v) for key, v in weights.items()}, path)
  flags = [photographs / "microaneurysms.png", f"--checkpoint={path}"]
  flags += ["--arch=resnet8-small", "--size=16"]
  out = f"--out={tmp_path / 'none'}"
  told = refused(*flags, "--class_names=imagenet", out)
  assert "name each of the 3 outputs" in told and "1,000 names: tench" in told
  monkeypatch.undo()  # methods run again
  printed, (e,) = explained(*flags, out=tmp_path / "unnamed")
  assert "does not name its 3 classes; --class_names=FILE does" in printed
  assert e["predicted_name"] is None
  (tmp_path / "names.txt").write_text("cat\ndog\nfox\n")
  named = [*flags, f"--class_names={tmp_path / 'names.txt'}"]
  printed, (e,) = explained(*named, "--target=dog")
  assert (e["target"], e["target_name"]) == (1, "dog")
  assert "does not name its 3" not in printed


def test_a_file_of_1000_outputs_may_be_given_imagenets_names(
  explained, photographs, tmp_path
):
  path = tmp_path / "model.pth"
  model = models.create("resnet8-small", 1_000)
  weights = torch_io.names.to_torch(model)
  torch.save({key: torch.from_numpy(v) for key, v in weights.items()}, path)
  folder = tmp_path / "goldfish"
  folder.mkdir()
  shutil.copy(photographs / "microaneurysms.png", folder)
  flags = [folder, f"--checkpoint={path}", "--arch=resnet8-small", "--size=16"]
  printed, (e,) = explained(*flags, out=tmp_path / "unnamed")
  assert "If they are ImageNet's, in the order of torchvision's" in printed
  assert e["predicted_name"] is None and e["true"] is None
  flags.append("--class_names=imagenet")
  printed, (e,) = explained(*flags, "--target=great grey owl")
  assert "are called by ImageNet's names, in the order of torchv" in printed
  assert (e["target"], e["true"]) == (24, 1)
