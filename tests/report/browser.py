"""Chromium without a window, driven through its DevTools protocol.

Over a pipe, so nothing but the browser is needed: messages are JSON objects,
each ended by a zero byte.
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TIMEOUT_SECS = 120


class Browser:
  """A browser with one page."""

  def __init__(self, to_browser, from_browser):
    self._to, self._from = to_browser, from_browser
    self._buffer, self._last, self._session = b"", 0, None
    self.events = []
    target = self("Target.createTarget", url="about:blank")["targetId"]
    attached = self("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self(f"{domain}.enable")

  def __call__(self, method, **params):
    """Sends a command; returns its result, and keeps the events before it."""
    self._last += 1
    message = {"id": self._last, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    self._to.write(json.dumps(message).encode() + b"\0")
    self._to.flush()
    while True:
      answer = self._read()
      if answer.get("id") == self._last:
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]
      self.events.append(answer)

  def _read(self):
    while b"\0" not in self._buffer:
      chunk = os.read(self._from.fileno(), 1 << 20)
      assert chunk, "the browser ended"
      self._buffer += chunk
    message, self._buffer = self._buffer.split(b"\0", 1)
    return json.loads(message)

  def open(self, path, width=1280, height=900, dark=False, script=True):
    """Opens a file and waits until it has been laid out."""
    self.events = []
    self("Emulation.setScriptExecutionDisabled", value=not script)
    self.resize(width, height)
    self(
      "Emulation.setEmulatedMedia",
      features=[
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
      ],
    )
    self("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
    until = time.monotonic() + _TIMEOUT_SECS
    while self("Runtime.evaluate", expression="document.readyState")["result"][
      "value"
    ] != "complete" or self.run("location.href").startswith("about:"):
      assert time.monotonic() < until, f"{path} did not load"
      time.sleep(0.05)
    if script:
      self.settle()

  def resize(self, width, height=900):
    """Gives the page another width."""
    self(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def run(self, script):
    """Returns what an expression is, or what its promise comes to."""
    done = self(
      "Runtime.evaluate",
      expression=script,
      awaitPromise=True,
      returnByValue=True,
    )
    assert "exceptionDetails" not in done, done["exceptionDetails"]
    return done["result"].get("value")

  def settle(self):
    """Waits until two frames have been drawn."""
    self.run(
      "new Promise(done => requestAnimationFrame("
      "() => requestAnimationFrame(done)))"
    )

  def click(self, selector):
    """Clicks in the middle of an element, as a mouse does."""
    x, y = self.run(
      f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
      "one.scrollIntoView({block: 'center'});"
      "const box = one.getBoundingClientRect();"
      "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
      self(
        "Input.dispatchMouseEvent",
        type=kind,
        x=x,
        y=y,
        button="left",
        clickCount=1,
      )
    self.settle()

  def press(self, key, code=0):
    """Presses a key: "Enter", "Escape", "ArrowRight"."""
    text = {"Enter": "\r"}.get(key, "")
    for kind in ("keyDown", "keyUp"):
      self(
        "Input.dispatchKeyEvent",
        type=kind,
        key=key,
        code=key,
        windowsVirtualKeyCode=code,
        **({"text": text} if text and kind == "keyDown" else {}),
      )
    self.settle()

  def choose(self, selector, value):
    """Gives a form's element a value, as its user would."""
    self.run(
      f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
      f"one.value = {json.dumps(value)};"
      "for (const kind of ['input', 'change'])"
      "one.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )
    self.settle()

  def pdf(self):
    """Returns the page as it is printed, by its own size and margins."""
    done = self(
      "Page.printToPDF", preferCSSPageSize=True, printBackground=False
    )
    return base64.b64decode(done["data"])

  def errors(self):
    """Returns what the console says went wrong since the page was opened."""
    self.settle()
    return [
      event["params"]
      for event in self.events
      if event["method"] == "Runtime.exceptionThrown"
      or event["method"] == "Log.entryAdded"
      or (
        event["method"] == "Runtime.consoleAPICalled"
        and event["params"]["type"] in ("error", "warning", "assert")
      )
    ]

  def requests(self):
    """Returns the addresses that the page asked for."""
    return [
      event["params"]["request"]["url"]
      for event in self.events
      if event["method"] == "Network.requestWillBeSent"
    ]


@contextlib.contextmanager
def started():
  """A browser, ended at the end; skips where none is installed."""
  program = next(filter(None, map(shutil.which, _NAMES)), None)
  if program is None:
    pytest.skip(
      "pages are looked at in Chromium, which is not installed: "
      "apt-get install chromium"
    )
  own_read, to_browser = os.pipe()
  from_browser, own_write = os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    flags = (
      *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
      *("--hide-scrollbars", "--remote-debugging-pipe"),
      *("--disable-dev-shm-usage", f"--user-data-dir={profile}"),
    )
    # It reads from 3 and writes to 4.
    line = f'exec "$@" 3<&{own_read} 4>&{own_write}'
    process = subprocess.Popen(
      ["bash", "-c", line, "bash", program, *flags],
      pass_fds=(own_read, own_write),
      stderr=subprocess.DEVNULL,
    )
    os.close(own_read)
    os.close(own_write)
    with open(to_browser, "wb") as to, open(from_browser, "rb") as back:
      try:
        yield Browser(to, back)
      finally:
        process.terminate()
        process.wait(_TIMEOUT_SECS)
