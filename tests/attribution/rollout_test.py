"""Attention rollout against the paper's equation, in any way of writing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gc_jax
from gc_jax.attribution import METHODS
from gc_jax.attribution.programs import DoesNotHold
from gc_jax.models import vit

TARGETS = jnp.array([[0, 1], [2, 0]])
GRID, HEADS, DEPTH = (2, 3), 2, 8
rollout = METHODS["attention_rollout"]


def by_hand(score, shares, row):
  """The paper's R by products of matrices, and the row that is asked for.

  Args:
    score: of the probes added to each attention's shares `[B H n n]`.
    shares: of each attention.
    row: R -> the map.
  """
  gradients = jax.grad(score)([jnp.zeros_like(each) for each in shares])
  num = shares[0].shape[-1]
  relevance = jnp.broadcast_to(jnp.eye(num), (len(shares[0]), num, num))
  for gradient, share in zip(gradients, shares, strict=True):
    mixed = jax.nn.relu(gradient * share).mean(1)
    relevance = relevance + mixed @ relevance
  return row(relevance)


def test_of_our_vit_it_is_the_class_tokens_row_of_the_papers_matrix(
  make_tiny_vit, monkeypatch
):
  model = make_tiny_vit()
  model.eval()
  images = jax.random.uniform(jax.random.key(0), (2, 16, 20, 3))
  found = jax.jit(lambda x: rollout(model, x, TARGETS))(images)
  wrapped = jax.jit(rollout)(gc_jax.wrap(model), images, TARGETS)
  np.testing.assert_allclose(wrapped, found, rtol=1e-3, atol=1e-6)
  graphdef, state = nnx.split(model)

  def run(probes, target):
    """Attention once more, from its equation."""
    seen = []

    def attend(module, x):
      weight, bias = module.in_proj_weight[...], module.in_proj_bias[...]
      parts = jnp.split(x @ weight + bias[None, None], 3, -1)
      heads = [each.reshape(*x.shape[:2], 2, 4) for each in parts]
      scores = jnp.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]) / 2
      seen.append(jax.nn.softmax(scores))
      shares = seen[-1] + (0 if probes is None else probes[len(seen) - 1])
      found = jnp.einsum("bhqk,bkhd->bqhd", shares, heads[2])
      return module.out_proj(found.reshape(x.shape))

    monkeypatch.setattr(vit.Attention, "__call__", attend)
    copy = nnx.merge(graphdef, state)
    logits = copy.classify(copy.features(copy.normalize(images)))
    return jnp.take_along_axis(logits, target[:, None], 1).sum(), seen

  row = lambda relevance: relevance[:, 0, 1:].reshape(2, 4, 5)

  @jax.jit
  def expect(target):
    _, shares = run(None, target)
    assert len(shares) == 2
    return by_hand(lambda probes: run(probes, target)[0], shares, row)

  for p, target in enumerate(TARGETS.T):
    expected = expect(target)
    assert expected.max() > 0
    np.testing.assert_allclose(
      found[:, p], expected, atol=1e-5 * float(expected.max())
    )


def plain(q, k, v, probe=None):
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / DEPTH**0.5
  above = jnp.exp(scores - scores.max(-1, keepdims=True))
  shares = above / above.sum(-1, keepdims=True)
  shares = shares if probe is None else shares + probe
  return jnp.einsum("bhqk,bkhd->bqhd", shares, v)


def of_scores(shares_of):
  """Returns attention whose shares are a function of its scores."""

  def attend(q, k, v):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / DEPTH**0.5
    return jnp.einsum("bhqk,bkhd->bqhd", shares_of(scores), v)

  return attend


def one_head(q, k, v):
  return jax.nn.softmax(q @ k.T / DEPTH**0.5) @ v


# Batches and heads in any order of axes.
WAYS = {
  "plain": plain,
  "jax": jax.nn.dot_product_attention,
  "nnx": nnx.dot_product_attention,
  "linen": nn.dot_product_attention,
  "vmap": jax.vmap(jax.vmap(one_head, in_axes=1, out_axes=1)),
  "heads first": lambda *qkv: jax.vmap(
    jax.vmap(one_head), in_axes=2, out_axes=2
  )(*qkv),
  "log-softmax": of_scores(lambda x: jnp.exp(jax.nn.log_softmax(x))),
  "logsumexp": of_scores(
    lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True))
  ),
  "logsumexp, flat": of_scores(
    lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1)[..., None])
  ),
}


def net_of(attend, x, tap, probes=(None, None)):
  """Two attentions of 6 patches and perhaps a token before them."""
  weights = jax.random.normal(jax.random.key(0), (2, 3, 16, 16)) / 4
  x = tap(x)
  for (q, k, v), probe in zip(weights, probes, strict=True):
    heads = [(x @ w).reshape(*x.shape[:2], HEADS, DEPTH) for w in (q, k, v)]
    extra = (probe,) if attend is plain else ()
    x = x + jnp.tanh(attend(*heads, *extra)).reshape(x.shape)
  return x


def tokens(count):
  return jax.random.normal(jax.random.key(1), (2, count, 16))


def rollout_of(run, x, **cells):
  """Of tokens, as a picture of one row."""
  net = gc_jax.wrap(lambda images, tap: run(images[:, 0], tap), **cells)
  return rollout(net, x[:, None], TARGETS)


HEAD = jax.random.normal(jax.random.key(2), (16, 5))


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_attention_is_found_however_it_is_written(way, prefix):
  read = (lambda x: x[:, 0]) if prefix else (lambda x: x.mean(1))
  run = lambda x, tap: read(net_of(WAYS[way], x, tap)) @ HEAD
  x = tokens(prefix + 6)
  found = jax.jit(lambda x: rollout_of(run, x, grid=GRID, prefix=prefix))(x)

  def shares_of(x):
    """Both attentions' shares: what a probe of one key alone adds."""
    seen = []

    def attend(q, k, v):
      scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / DEPTH**0.5
      seen.append(jax.nn.softmax(scores))
      return plain(q, k, v)

    net_of(attend, x, lambda x: x)
    return seen

  def row(relevance):
    relevance = relevance - jnp.eye(relevance.shape[-1])[None]
    of = relevance[:, 0] if prefix else relevance.mean(1)
    return of[:, prefix:].reshape(2, *GRID)

  def score(probes, target):
    logits = read(net_of(plain, x, lambda x: x, probes)) @ HEAD
    return jnp.take_along_axis(logits, target[:, None], 1).sum()

  @jax.jit
  def expect(target):
    return by_hand(functools.partial(score, target=target), shares_of(x), row)

  for p, target in enumerate(TARGETS.T):
    expected = expect(target)
    np.testing.assert_allclose(
      found[:, p], expected, atol=1e-5 * float(expected.max())
    )


def windows(x, tap):
  """Attention within each half of the tokens."""
  halves = tap(x).reshape(2 * len(x), 3, 16)
  return net_of(plain, halves, lambda x: x).reshape(x.shape).mean(1) @ HEAD


@pytest.mark.parametrize(
  "run, wanted, message",
  [
    (lambda x, tap: tap(x).mean(1) @ HEAD, {}, "none outside of loops"),
    (windows, {}, r"of all tokens on all.*\(4, 2, 3, 3\)"),
    (
      lambda x, tap: net_of(plain, x, lambda x: tap(x[:, :4])).mean(1) @ HEAD,
      {"grid": (2, 2)},
      None,
    ),
    (
      lambda x, tap: (
        net_of(plain, jnp.pad(tap(x), ((0, 0), (2, 0), (0, 0))), lambda x: x)
        .mean(1) @ HEAD
      ),
      {},
      "which of 8 tokens are patches; at 'tap' are 2 x 3 cells",
    ),
  ],
)  # fmt: skip
def test_what_has_no_attention_of_all_tokens_says_so(run, wanted, message):
  cells = {"grid": GRID, "prefix": 0} | wanted
  if message is None:
    assert rollout_of(run, tokens(6), **cells).shape == (2, 2, 2, 2)
    return
  with pytest.raises(DoesNotHold, match=message):
    rollout_of(run, tokens(6), **cells)


NOT_SHARES = {
  "scaled": of_scores(lambda x: 0.9 * jax.nn.softmax(x)),
  "sigmoid": of_scores(jax.nn.sigmoid),
  "mixed by heads": of_scores(
    lambda x: jnp.einsum("bhqk,hg->bgqk", jax.nn.softmax(x), jnp.ones((2, 2)))
  ),
  "divided later": lambda q, k, v: (
    of_scores(jnp.exp)(q, k, v) / of_scores(jnp.exp)(q, k, jnp.ones_like(v))
  ),
  "in a scan": lambda q, k, v: jax.lax.scan(
    lambda x, _: (plain(x, k, v), None), q, None, length=2
  )[0],
  "in a cond": lambda q, k, v: jax.lax.cond(
    q.sum() > 0, plain, lambda q, k, v: v, q, k, v
  ),
}


@pytest.mark.parametrize("way", NOT_SHARES)
def test_attention_that_cannot_be_seen_is_named(way):
  """Beside one that can: a map of that alone would look right."""

  def run(x, tap):
    return net_of(NOT_SHARES[way], net_of(plain, x, tap), lambda x: x)[:, 0]

  message = (
    "in a '(scan|cond)'. Unroll it" if "in a " in way else "after the softmax"
  )
  with pytest.raises(DoesNotHold, match=message):
    rollout_of(lambda x, tap: run(x, tap) @ HEAD, tokens(6), grid=GRID)


def test_loops_and_norms_that_mix_no_tokens_are_no_attention():
  def attend(q, k, v):
    unit = lambda x: x / jnp.sqrt(jnp.einsum("bnhd,bnhd->bnh", x, x))[..., None]
    layer = lambda x, _: (jnp.tanh(x @ HEAD[:DEPTH, :1]) * x, None)
    return plain(unit(q), unit(k), jax.lax.scan(layer, v, None, length=2)[0])

  run = lambda x, tap: net_of(attend, x, tap).mean(1) @ HEAD
  found = rollout_of(run, tokens(6), grid=GRID)
  assert found.shape == (2, 2, *GRID) and found.max() > 0
