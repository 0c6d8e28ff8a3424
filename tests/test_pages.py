"""The pages, opened in a browser: `pip install ".[test,ecosystem]"` brings one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxnn
from jaxnn import figures, plots

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.skipif(
        importlib.util.find_spec("PyQt6") is None, reason="a browser comes with '.[ecosystem]'"
    ),
]
# Of a repository's page; its ground in both schemes.
WIDTH = 846
GROUND = dict(zip(("light", "dark"), plots.PAPER, strict=True))
SCHEMES = pytest.mark.parametrize("scheme", GROUND)


def opened(page, scheme, script="null"):
    """What `tests/browser.py` tells of a page; it asked for nothing but itself, and complained of
    nothing.
    """
    command = [sys.executable, Path(__file__).with_name("browser.py"), page, str(WIDTH), scheme]
    ran = subprocess.run([*command, script], capture_output=True, text=True, timeout=120)
    if "cannot open shared object file" in ran.stderr:
        pytest.skip(f"the browser needs a library: {ran.stderr.splitlines()[-1]}")
    seen = json.loads(ran.stdout)
    assert seen["asked"] == [Path(page).resolve().as_uri()] and seen["complaints"] == []
    assert next(iter(seen["colors"])) == GROUND[scheme]
    return seen


@jax.custom_vjp
def swish(x):
    return x * jax.nn.sigmoid(x)


def _backwards(x, g):
    s = jax.nn.sigmoid(x)
    return (1.05 * g * (s + x * s * (1 - s)),)


swish.defvjp(lambda x: (swish(x), x), _backwards)


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """The page of a wrong rule, a kink and a right leaf."""

    def loss(p):
        return jnp.sum(swish(p["wrong"])) + jnp.sum(jnp.abs(p["kink"])) + jnp.sum(p["right"] ** 2)

    file = tmp_path_factory.mktemp("pages") / "check.html"
    point = {"wrong": jnp.ones(3), "kink": jnp.zeros(2), "right": jnp.ones(4)}
    jaxnn.check_gradient(loss, point).save(file)
    return file


LOOK = """(() => {
  const color = name => getComputedStyle(document.querySelector(name)).color;
  const leaves = [...document.querySelectorAll("details")];
  return {
    leaves: leaves.map(leaf => [leaf.querySelector(".word").textContent, leaf.open]),
    pictures: leaves.map(leaf => leaf.querySelectorAll("svg").length),
    wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    named: document.querySelector(".here").textContent,
    words: [color(".bad"), color(".look"), color(".good"), color(".jaxnn")],
  };
})()"""


def _contrast(color, ground):
    """Of two colours, by the rule of the Web Content Accessibility Guidelines 2.1."""

    def light(rgb):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    rgb = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    under = [int(ground[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    low, high = sorted([light(rgb), light(under)])
    return (high + 0.05) / (low + 0.05)


@SCHEMES
def test_the_page_of_a_check(check, scheme):
    seen = opened(check, scheme, LOOK)
    found = seen["script"]
    # Folded is only what agrees; each leaf has its picture; nothing is wider than the page.
    assert found["leaves"] == [["differs", True], ["kink", True], ["agrees", False]]
    assert found["pictures"] == [1, 1, 1] and not found["wide"]
    assert "def _backwards(x, g):" in found["named"]  # the rule, not its caller
    # Words can be read (4.5 to 1 is asked of text), and the curves are in the scheme's colours.
    assert min(_contrast(color, GROUND[scheme]) for color in found["words"]) >= 4.5
    palette = {"light": plots._ON_LIGHT, "dark": plots._ON_DARK}[scheme]
    assert palette[0] in seen["colors"]


MOVED = """(() => {
  const path = () => document.querySelector("#path polyline").getAttribute("points");
  const slider = document.querySelector("#slider"), told = () => document.body.innerText;
  const states = [0, slider.max].map(value => {
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    return [path(), told()];
  });
  return {states, width: document.querySelector("#path").width.baseVal.value,
          wide: document.documentElement.scrollWidth > document.documentElement.clientWidth};
})()"""


@SCHEMES
def test_the_page_of_the_learning_rate(tmp_path, scheme):
    (page,) = figures.draw(tmp_path, ["slider"])
    seen = opened(page, scheme, MOVED)["script"]
    (slow, slow_text), (fast, fast_text) = seen["states"]
    # The first point of each is the start; further ones are not the same.
    points = [[tuple(map(float, p.split(","))) for p in path.split()] for path in (slow, fast)]
    assert points[0][0] == points[1][0] and len(points[0]) == len(points[1]) == 31
    assert points[0][1] != points[1][1]
    assert "learning rate 0.0100" in slow_text and "learning rate 1.10" in fast_text
    # The path starts where the axes say: x0 = -8 of -10 to 10.
    assert points[0][0][0] == pytest.approx(0.1 * seen["width"])
    assert not seen["wide"]
