"""Pages as a browser reads them, for the report's tests."""

import html.parser
import re

_EMBEDDED = ("data:image/png;base64,", "data:image/jpeg;base64,")
_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
  """Checks that tags close in order; keeps attributes and text."""

  def __init__(self, source):
    super().__init__()
    self.open, self.attributes, self.text = [], [], ""
    self.feed(source)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.attributes.append((tag, dict(attrs)))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.attributes.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.text += data

  def images(self):
    return [attrs for tag, attrs in self.attributes if tag == "img"]


def load(path):
  """Returns the parsed page, and its source."""
  source = path.read_text(encoding="utf-8")
  page = Page(source)
  page.text = re.sub(r"\s+", " ", page.text)
  return page, source


def assert_self_contained(page, source):
  """Holds a page to need no other file, and its images to have words."""
  for tag, attrs in page.attributes:
    assert tag not in ("link", "iframe", "object")
    for name in ("src", "href", "xlink:href", "srcset", "poster"):
      value = attrs.get(name) or "#"
      assert value.startswith(("#", *_EMBEDDED)), (tag, value)
  assert "url(http" not in source and "@import" not in source
  for image in page.images():
    assert image["src"].startswith(_EMBEDDED)
    assert image["alt"]
