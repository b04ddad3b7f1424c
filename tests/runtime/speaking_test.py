"""No command is silent for long, and what is said is what goes on."""

import threading
import time

import pytest

from gc_jax.runtime import speaking


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
  monkeypatch.setattr(speaking, "QUIET_SECS", 0.05)
  monkeypatch.setattr(speaking, "_voice", speaking._Voice())


def wait_for(text, capsys):
  said = ""
  deadline = time.monotonic() + 30
  while text not in said:
    assert time.monotonic() < deadline, said
    time.sleep(0.01)
    said += capsys.readouterr().err
  return said


def test_while_nothing_is_said_a_line_names_the_innermost_task(capsys):
  with speaking.never_silent(), speaking.doing("training"):
    wait_for("still training, 0 s\n", capsys)
    with speaking.doing("compiling") as task:
      wait_for("still compiling, 0 s\n", capsys)
      task.text = "measuring, 8 of 50"
      wait_for("still measuring, 8 of 50, 0 s\n", capsys)
    wait_for("still training, 0 s\n", capsys)
  assert "speaking" not in [thread.name for thread in threading.enumerate()]


def test_a_task_of_another_thread_may_end_first_or_last(capsys):
  with speaking.never_silent(), speaking.doing("measuring"):
    ahead = speaking.doing("compiling the next")
    thread = threading.Thread(target=ahead.__enter__)
    thread.start()
    thread.join()
    wait_for("still compiling the next", capsys)
    ahead.__exit__(None, None, None)
    wait_for("still measuring", capsys)


def test_nothing_is_added_while_others_speak(capsys, monkeypatch):
  monkeypatch.setattr(speaking, "QUIET_SECS", 30.0)
  with speaking.never_silent():
    speaking._voice.said_at -= 29.8
    speaking.heard()
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_only_one_of_several_processes_speaks(capsys):
  speaking.mute()
  with speaking.never_silent(), speaking.doing("compiling"):
    speaking.say("a line")
    time.sleep(0.3)
  assert capsys.readouterr().err == ""
