"""The command line: what it prints, what it returns, and how it refuses."""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit

from jaxnn import Fit, History, Status, load_checkpoint
from jaxnn.cli import main, train
from jaxnn.cli.output import print_json


@pytest.mark.slow
def test_train_prints_one_json_object(capsys):
    assert (
        main(
            [
                "train",
                "--epochs",
                "3",
                "--json",
                "--layers",
                "10",
                "--optimizer",
                "adam",
                "--lr",
                "0.01",
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert {len(result[name]) for name in ("train_loss", "train_accuracy", "test_accuracy")} == {3}
    assert result["steps"] == 45 and result["train_loss"][-1] < result["train_loss"][0] < 2.4
    assert set(result["gradient_check"]) == {"W1", "b1", "W2", "b2"}
    assert max(result["gradient_check"].values()) < 1e-4


def test_train_shows_that_the_gradients_agree_and_then_learns(capsys):
    assert main(["train", "--epochs", "60"]) == 0
    out = capsys.readouterr().out
    assert out.index("numerical against automatic") < out.index("test accuracy")
    assert float(re.search(r"test accuracy (0\.\d+)\s*$", out)[1]) > 0.9


@pytest.mark.slow
def test_real_mnist_is_learned(capsys):
    directory = pathlib.Path(__file__).parents[1] / ".mnist"
    if not directory.is_dir():
        pytest.skip("needs `python examples/fetch_mnist.py .mnist`")
    options = ["--layers", "128", "--epochs", "10", "--optimizer", "adam", "--lr", "0.01", "--json"]
    assert main(["train", "--data", str(directory), *options]) == 0
    assert json.loads(capsys.readouterr().out)["test_accuracy"][-1] > 0.93


@pytest.mark.slow
def test_a_run_is_saved_resumed_and_measured(capsys, tmp_path):
    run = [
        "train",
        "--layers",
        "10",
        "--checkpoint",
        str(tmp_path / "run"),
        "--log",
        str(tmp_path / "log"),
        "--json",
    ]
    assert main([*run, "--epochs", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*run, "--epochs", "4", "--resume"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (
        second["train_loss"][:2] == first["train_loss"]
        and len(second["train_loss"]) == 4
        and second["steps"] == 60
    )
    ends = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [end["record"]["train_loss"] for end in ends if end["record"]] == second["train_loss"]
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["step"] == 60 and measured["test_accuracy"] == pytest.approx(
        second["test_accuracy"][-1]
    )
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_is_measured_is_the_best_one_and_its_last_row_is_told(capsys, tmp_path):
    run = ["train", "--layers", "10", "--optimizer", "adam", "--lr", "1", "--patience", "2"]
    assert main([*run, "--epochs", "100", "--checkpoint", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    stopped = int(re.search(r"stopped after step (\d+): no improvement", out)[1])
    told = r"test accuracy (\S+)\nmeasured after step (\d+), where the test loss was lowest"
    best, shown = re.search(told, out).group(2, 1)
    assert int(best) == stopped - 2 * 15
    rows = re.findall(r"^ +(\d+) .*$", out, re.M)
    assert int(rows[-1]) == stopped // 15  # not a tenth of the epochs
    assert main(["eval", str(tmp_path), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert (measured["step"], measured["steps"]) == (int(best), stopped)
    assert f"{measured['test_accuracy']:.4f}" == shown
    assert main(["eval", str(tmp_path)]) == 0
    assert f"after step {best}, the best of {stopped}" in capsys.readouterr().out


@pytest.mark.slow
def test_several_learning_rates_train_at_once(capsys):
    assert main(["train", "--layers", "10", "--epochs", "2", "--lr", "0.1,1,1e30", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["lr"] for run in result["runs"]] == [0.1, 1, 1e30]
    assert [run["steps"] for run in result["runs"][:2]] == [30, 30] and "gradient_check" in result


@pytest.mark.slow
def test_a_run_that_is_not_finite_says_so_and_fails(capsys):
    assert (
        main(["train", "--layers", "10", "--epochs", "3", "--lr", "1e38", "--activation", "relu"])
        == 1
    )
    assert re.search(
        r"stopped after step \d+: at the next one, \S+ was not finite", capsys.readouterr().out
    )


@pytest.mark.slow
def test_patience_ends_a_run(capsys):
    assert (
        main(["train", "--layers", "10", "--epochs", "200", "--lr", "20", "--patience", "2"]) == 0
    )
    out = capsys.readouterr().out
    assert "no improvement" in out and "where the test loss was lowest" in out


@pytest.mark.slow
def test_train_by_numerical_gradients(capsys):
    results = []
    for grad in ("numerical", "automatic"):
        assert main(["train", "--epochs", "1", "--grad", grad, "--layers", "10", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["train_loss"] == pytest.approx(results[1]["train_loss"], rel=1e-5)


@pytest.mark.slow
def test_tour_agrees_with_the_chapter(capsys):
    assert main(["tour", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    different = {row["quantity"] for row in rows if row["chapter"] != row["here"]}
    assert different == {
        "the training set, x (chapter: MNIST)",
        "the training set, t (chapter: one-hot)",
        "a mini-batch of 10, x",
        "a mini-batch of 10, t",
        "lr = 10, 100 steps: distance from (0, 0)",
        "its loss (the weights are rounded to 8 digits)",
        "scores of the 2x3 network",
        "change in the loss if w11 grows by h",
    }
    here = {row["quantity"]: row["here"] for row in rows}
    assert here["largest slope of the accuracy"] == "0"
    assert main(["tour"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"0.1999999999990898 +0.1999999999990898", out)
    assert max(map(len, out.splitlines())) <= 80


def test_a_directory_without_the_files_is_one_line(capsys, tmp_path):
    assert main(["train", "--data", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("jaxnn train: error: `--data` must hold train-images-idx3-ubyte")
        and err.count("\n") == 1
    )
    assert main(["train", "--data", str(tmp_path), "--debug"]) == 2
    debugged = capsys.readouterr().err
    assert debugged.startswith("Traceback") and debugged.endswith(err)


MODEL = """
import jax, jax.numpy as jnp
def right(x=jnp.array([1.0, 2.0])):
    return jnp.sum(x**2)
@jax.custom_vjp
def square(x):
    return jnp.sum(x**2)
square.defvjp(lambda x: (square(x), x), lambda x, g: (g * x,))
def wrong():
    return square, (jnp.array([1.0, 2.0]),)
def beyond(x=jnp.array([jnp.inf])): return jnp.sum(jnp.tanh(x))
def needs(x): return x
def nothing(): return 3
number = 3
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


@pytest.mark.parametrize(
    "name, code, word",
    [("right", 0, "agrees"), ("wrong", 1, "differs"), ("beyond", 2, "unresolved")],
)
def test_check_says_so_by_its_exit_code(capsys, model, name, code, word):
    assert main(["check", f"{model}:{name}"]) == code
    assert capsys.readouterr().out.split("\n")[0].endswith(word)


@pytest.mark.parametrize(
    "names, code", [(["wrong", "beyond", "right"], 1), (["beyond", "right"], 2)]
)
def test_of_several_targets_the_worst_decides(model, names, code):
    assert main(["check", *(f"{model}:{name}" for name in names)]) == code


@pytest.mark.parametrize(
    "terminal, no_color, coloured", [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_verdicts_have_colours_on_a_terminal_only_and_not_where_they_are_unwanted(
    capsys, monkeypatch, model, terminal, no_color, coloured
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    main(["check", f"{model}:wrong"])
    assert ("\x1b[31mdiffers\x1b[0m" in capsys.readouterr().out) == coloured


@pytest.mark.parametrize(
    "name, code, said", [("right", 0, "right"), ("wrong", 1, 'model.py", line')]
)
def test_explain_names_the_line(capsys, model, name, code, said):
    assert main(["explain", f"{model}:{name}"]) == code
    assert said in capsys.readouterr().out
    assert main(["explain", f"{model}:{name}", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)


def test_check_prints_json_and_draws(capsys, model, tmp_path):
    picture = tmp_path / "evidence.png"
    assert (
        main(
            [
                "check",
                f"{model}:wrong",
                "--json",
                "--order",
                "2",
                "--seed",
                "3",
                "--plot",
                str(picture),
            ]
        )
        == 1
    )
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "differs" and report["leaves"][0]["path"] == "[0]"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "target, message",
    [
        ("nocolon", "`TARGET` must be FILE.py, FILE.py:NAME, FILE.py::TEST or MODULE:NAME. Got"),
        ("{model}:missing", "`TARGET` must name a function in"),
        ("{model}:number", "Got 'number', of type int"),
        (
            "{model}:needs",
            "`needs` must have a default for each argument. Got none for x. Alternatively, let "
            "`needs()` return (function, arguments), or run",
        ),
        (
            "{model}:nothing",
            "`nothing` must return (function, arguments) if it takes no arguments itself. Got 3.",
        ),
        ("nowhere.py:f", "`TARGET` must be a file or module that runs. Got FileNotFoundError"),
        ("no_such_module:f", "Got ModuleNotFoundError: No module named 'no_such_module'"),
        ("{broken}:f", "Got ZeroDivisionError: division by zero"),
    ],
)
def test_check_refuses_in_one_line(capsys, model, target, message):
    broken = model.with_name("broken.py")
    broken.write_text("1 / 0")
    assert main(["check", target.format(model=model, broken=broken)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_version_and_help_answer_without_jax():
    code = (
        "import sys, jaxnn.cli\ntry: jaxnn.cli.main([sys.argv[1]])\nexcept SystemExit: "
        "pass\nassert 'jax' not in sys.modules"
    )
    for flag in ("--version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", code, flag], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    module = subprocess.run(
        [sys.executable, "-m", "jaxnn", "--version"], capture_output=True, text=True, timeout=60
    )
    told = r"jaxnn \d+\.\d+\.\d+ \(distribution jaxnn-gradients\)\n"
    assert re.fullmatch(told, module.stdout)


def test_an_option_without_a_default_names_none(capsys):
    with pytest.raises(SystemExit):
        main(["watch", "--help"])
    assert "derivatives; default" not in " ".join(capsys.readouterr().out.split())


def test_the_reference_needs_pdoc(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    assert main(["docs", "--out", str(tmp_path)]) == 2
    assert "needs pdoc: pip install pdoc." in capsys.readouterr().err


NESTED = """
import jax, jax.numpy as jnp
def make():
    def loss(w): return jnp.sum(w**2)
    return loss
def loss_of(w, x): return jnp.sum(w * x)
class Model:
    def __init__(self, size): self.w = jnp.ones(size)
    def loss(self, w=jnp.ones(2)): return jnp.sum(w)
"""


@pytest.mark.parametrize("name", ["make.loss", "inner", "loss_of", "Model.loss"])
def test_what_cannot_be_called_on_its_own_is_for_watch(capsys, tmp_path, monkeypatch, name):
    (tmp_path / "model.py").write_text(NESTED)
    monkeypatch.chdir(tmp_path)
    assert main(["check", f"model.py:{name}"]) == 2
    assert "`jaxnn watch model.py`" in capsys.readouterr().err
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", f"model:{name}"]) == 2
    assert "`jaxnn watch -m model`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_diverges_is_not_told_as_overfitting(capsys):
    main(["train", "--lr", "1000", "--epochs", "2", "--optimizer", "adam"])
    said = capsys.readouterr().out
    assert "diverged: the training loss went from" in said and "overfitting" not in said


@pytest.mark.parametrize(
    "test, overfitting",
    [
        ([0.2, 0.1, 0.09, 0.08, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14], True),
        ([0.3, 0.2, 0.15, 0.125, 0.13, 0.1, 0.14, 0.12, 0.125, 0.12], False),  # one lucky number
        ([0.3, 0.2, 0.1], False),
    ],
)
def test_overfitting_is_a_rise_and_no_lucky_number_before_it(test, overfitting):
    count = len(test)
    metrics = {"train_loss": np.linspace(1, 0.01, count), "test_loss": np.array(test)}
    seconds, evaluated = np.ones(count), np.arange(1, count + 1) * 10
    history = History(np.array([1.0]), metrics, seconds, evaluated=evaluated)
    result = Fit({}, None, history, Status("finished", 10 * count))
    args = argparse.Namespace(activation="relu", layers=[10])
    said = train._lesson(args, result, int(np.argmin(test)), "")
    assert ("overfitting" in said) == overfitting


@pytest.mark.promotes
def test_eval_refuses_a_run_of_something_else(capsys, tmp_path):
    fit(
        lambda p, x: jnp.mean(p * x),
        jnp.ones(2),
        (jnp.ones((4, 2)),),
        optax.sgd(0.1),
        key=jax.random.key(0),
        max_steps=1,
        checkpoint=tmp_path,
    )
    assert main(["eval", str(tmp_path)]) == 2
    assert "which holds another kind of run." in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_so_many_steps_is_told_by_its_steps(capsys):
    assert main(["train", "--layers", "20", "--max-steps", "20"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^ +(step|\d+)  .*[0-9s]$", out, re.M) == ["step", "15", "20"]


@pytest.mark.slow
def test_a_step_function_leaves_the_first_layer_where_it_was(capsys, tmp_path):
    run = ["train", "--activation", "step", "--layers", "20", "--epochs", "5"]
    assert main([*run, "--checkpoint", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "a step function has slope 0 wherever it has one: W1 and b1 are\nunchanged" in said
    first = load_checkpoint(tmp_path).leaves["params"]
    assert main([*run, "--epochs", "9", "--checkpoint", str(tmp_path), "--resume"]) == 0
    last = load_checkpoint(tmp_path).leaves["params"]
    assert (first["['W1']"] == last["['W1']"]).all() and (first["['W2']"] != last["['W2']"]).any()


@pytest.mark.slow
def test_a_part_of_the_units_is_left_out(capsys, tmp_path):
    run = ["train", "--layers", "20", "--epochs", "2", "--json"]
    losses = []
    for dropout in ("0", "0.5"):
        assert main([*run, "--dropout", dropout, "--checkpoint", str(tmp_path / dropout)]) == 0
        losses.append(json.loads(capsys.readouterr().out)["train_loss"])
    assert losses[0] != losses[1]
    assert main(["eval", str(tmp_path / "0.5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train_loss"] == pytest.approx(losses[1][-1])


@pytest.mark.slow
def test_a_run_has_steps_and_measurements_as_it_is_told(capsys):
    run = ["train", "--layers", "20", "--max-steps", "70", "--evaluate-every", "2", "--json"]
    assert main(run) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 70 and len(told["train_loss"]) == 3  # after 30, 60 and 70 steps


PRINTS = """
import os, jax, jax.numpy as jnp
print("read")
os.write(1, b"from below\\n")
def loss(x=jnp.ones(2)):
    print("traced")
    jax.debug.print("run {}", x[0])
    return jnp.sum(x**2)
"""


def test_json_has_no_nan(capsys):
    print_json({"a": [np.nan, 1.0], "b": (np.inf, "NaN")})
    assert capsys.readouterr().out == '{"a": [null, 1.0], "b": [null, "NaN"]}\n'


def test_units_that_stay_make_up_for_those_that_dropout_leaves_out():
    args = argparse.Namespace(data=None, layers=[1000], activation="sigmoid", dropout=0.5)
    _, error, _ = train._task(args)
    params = {"W1": jnp.zeros((64, 1000)), "W2": jnp.zeros((1000, 10)).at[:, 0].set(1e-3)}
    found = error(params, jnp.ones((1, 64)), jnp.array([0]), key=jax.random.key(0))
    # A thousand units of 0.5: in the mean the first score is 0.5, and the others are 0.
    assert float(found) == pytest.approx(np.log(np.exp(0.5) + 9) - 0.5, abs=0.04)


def test_momentum_keeps_nine_tenths():
    optimizer = train._optimizer(argparse.Namespace(optimizer="momentum"))(0.1)
    one, state = jnp.ones(()), optimizer.init(jnp.zeros(()))
    for step in (-0.1, -0.19, -0.271):
        update, state = optimizer.update(one, state)
        assert float(update) == pytest.approx(step)


@pytest.mark.parametrize("command", ["check", "explain"])
def test_json_is_all_there_is_on_standard_output(tmp_path, command):
    (tmp_path / "model.py").write_text(PRINTS)
    run = [sys.executable, "-m", "jaxnn", command, f"{tmp_path / 'model.py'}:loss", "--json"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]
    assert {"read", "from below", "traced"} <= set(done.stderr.splitlines())


PROJECT = {
    "pkg/__init__.py": "",
    "pkg/helpers.py": "SCALE = 2.0\n",
    "pkg/models/__init__.py": "",
    "pkg/models/losses.py": """
import jax, jax.numpy as jnp
from ..helpers import SCALE
import beside
class Model:
    weight = 3.0
    def loss(self, x=jnp.ones(2)): return self.weight * jnp.sum(x**2)
    @staticmethod
    def energy(x=jnp.ones(2)): return SCALE * jnp.sum(x**4)
    class Inner:
        @classmethod
        def loss(cls, x=jnp.ones(2)): return jnp.sum(x)
model = Model()
@jax.custom_jvp
def triple(w): return 3 * w
triple.defjvp(lambda w, dw: (3 * w[0], 2 * dw[0]))
@jax.tree_util.register_pytree_node_class
class Net:
    def __init__(self, w=jnp.ones(2)): self.w = w
    def tree_flatten(self): return (self.w,), None
    @classmethod
    def tree_unflatten(cls, _, leaves): return cls(*leaves)
    def loss(self, x=jnp.ones(2)): return jnp.sum(x * triple(self.w))
    def norm(self): return jnp.sum(self.w**2)
net = Net()
def loss(x=jnp.ones(2)): return SCALE * jnp.sum(x**3)
def check_pair(): return loss, (jnp.ones(3),)
def keyed(x=jnp.ones(2), *, key=None): return jnp.sum(x**2)
def helper(x): return x
""",
    "beside.py": "",
    "nothing.py": "import jax.numpy as jnp\ndef f(x): return x\ndef g(y): return y\n",
    "test_model.py": """
import jax, jax.numpy as jnp, jaxnn
from jax.test_util import check_grads
from pkg.models.losses import loss
def wrong(x): return 2 * jax.grad(loss)(x)
def test_right(): jaxnn.assert_gradient(loss, jnp.ones(2))
def test_wrong(): jaxnn.assert_gradient(loss, jnp.ones(2), gradient=wrong)
def test_asserts():
    report = jaxnn.check_gradient(loss, jnp.ones(2), gradient=wrong)
    assert report.ok, report
def test_none(): assert True
def test_takes(): assert jax.grad(loss)(jnp.ones(2)).shape == (2,)
def test_check_grads(): check_grads(loss, (jnp.ones(2),), order=1)
def test_other(): assert 1 == 2, "one is not two"
class TestModel:
    def test_right(self): jaxnn.assert_gradient(loss, jnp.ones(2))
def asks(): jaxnn.assert_gradient(loss, jnp.ones(2), gradient=wrong)
""",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pkg", "beside")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "targets, code, said",
    [
        (["pkg.models.losses:loss"], 0, ["gradient of loss: agrees"]),
        (["test_model.py::test_takes"], 0, ["gradient of loss: agrees"]),
        (["test_model.py::test_check_grads"], 0, ["gradient of loss: agrees"]),
        (["pkg/models/losses.py:loss"], 0, ["gradient of loss: agrees"]),
        (["pkg/models/losses.py:Model.loss"], 0, ["agrees"]),
        (["pkg/models/losses.py:Model.energy"], 0, ["agrees"]),
        (["pkg/models/losses.py:Model.Inner.loss"], 0, ["agrees"]),
        (["pkg.models.losses:model.loss"], 0, ["agrees"]),
        (["pkg/models/losses.py:Net.loss"], 1, ["differs", "[1]", "custom_jvp of `triple`"]),
        (["pkg.models.losses:net.loss"], 1, ["differs", "[1]"]),
        (["pkg.models.losses:Net.norm"], 0, ["gradient of norm: agrees", "[0]"]),
        (["pkg.models.losses:keyed"], 0, ["agrees"]),
        (["pkg/models/losses.py"], 0, ["losses.py:loss\n", "losses.py:check_pair\n", "agrees"]),
        (["test_model.py::test_right"], 0, ["gradient of loss: agrees"]),
        (["test_model.py::TestModel::test_right"], 0, ["agrees"]),
        (["nothing.py:f", "test_model.py::test_wrong"], 1, ["differs"]),
        (["pkg.models.losses:loss", "test_model.py::test_none"], 2, ["agrees"]),
        (["test_model.py::test_wrong"], 1, ["gradient of loss: differs", "[0]   2"]),
        (["test_model.py:asks"], 1, ["gradient of loss: differs"]),
        (["test_model.py::test_asserts"], 1, ["gradient of loss: differs", "[0]   2"]),
        (
            ["pkg.models.losses:loss", "test_model.py::test_wrong"],
            1,
            ["pkg.models.losses:loss\n", "agrees", "test_model.py::test_wrong\n", "differs"],
        ),
    ],
)
def test_check_takes_functions_of_real_projects(capsys, project, targets, code, said):
    assert main(["check", *targets]) == code
    out = capsys.readouterr().out
    assert all(text in out for text in said), out


@pytest.mark.parametrize(
    "target, message",
    [
        ("nothing.py", "Got 'nothing.py', with functions: f, g."),
        (
            "test_model.py",
            "`TARGET` must be FILE.py:NAME or FILE.py::TEST if no check_... or loss... function",
        ),
        (
            "test_model.py:test_none",
            "no arguments itself; to run a test, write FILE.py::test_none. Got None.",
        ),
        (
            "test_model.py::test_none",
            "`TARGET` must be a test that checks or takes a gradient. Got",
        ),
        ("test_model.py::test_other", "`TARGET` must be a function that runs. Got AssertionError"),
        ("pkg/models/losses.py:Model.nothing", "Got 'Model.nothing', which is not there."),
        ("pkg/models/losses.py:helper", "let `helper()` return (function, arguments), or run"),
    ],
)
def test_what_cannot_be_checked_says_the_way_out(capsys, project, target, message):
    assert main(["check", target]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_several_reports_are_one_json_object(capsys, project):
    assert main(["check", "pkg.models.losses:loss", "test_model.py::test_right", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["targets"]
    assert [t["ok"] for t in told] == [True, True] and told[0]["target"].endswith(":loss")


@pytest.mark.parametrize(
    "targets, code", [(["pkg.models.losses:loss"], 0), (["nothing.py:f", "nothing.py:g"], 2)]
)
def test_explain_goes_on_where_one_of_several_cannot_be_asked(capsys, project, targets, code):
    assert main(["explain", *targets]) == code
    assert main(["explain", *targets, "nothing.py:f"]) == 2
    assert "`f` must have a default for each argument" in capsys.readouterr().err


def test_a_page_has_all_reports(capsys, project):
    targets = ["pkg.models.losses:loss", "test_model.py::test_wrong"]
    assert main(["check", *targets, "--html", "check.html", "--plot", "worst.png"]) == 1
    assert (project / "check.html").read_text().count("<h1>") == 2
    assert (project / "worst.png").exists()


def test_the_pictures_are_named_in_the_help(capsys):
    from jaxnn.cli.choices import FIGURES
    from jaxnn.figures import NAMES

    assert FIGURES == NAMES


def test_a_page_is_written(capsys, project):
    assert main(["check", "test_model.py::test_wrong", "--html", "check.html"]) == 1
    page = (project / "check.html").read_text()
    assert "<svg" in page and "differs" in page and "http" not in page.replace("http://www.w3", "")
    assert "page written to check.html" in capsys.readouterr().out


PLAIN = """
import jax.numpy as jnp
class Plain:
    def __init__(self): self.w = jnp.ones(2)
    def loss(self, x=jnp.ones(2)): return jnp.sum(self.w * x)
"""


def test_weights_that_are_not_checked_are_said_to_be_constant(capsys, tmp_path, monkeypatch):
    (tmp_path / "plain.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "plain.py:Plain.loss"]) == 0
    told = "plain.py:Plain.loss: Plain is not a pytree, so the attributes of its instance are"
    assert told in capsys.readouterr().err


SEVERAL = """
import jax.numpy as jnp
class Plain:
    @classmethod
    def loss(cls, x=jnp.ones(2)): return jnp.sum(x)
def loss_bad(x=jnp.ones(2)):
    raise RuntimeError("boom")
"""


def test_a_function_that_cannot_be_checked_does_not_hide_the_others(capsys, tmp_path, monkeypatch):
    source = "import jax.numpy as jnp\ndef check_sum(): return 3\n"
    source += "def loss(w=jnp.ones(2)): return jnp.sum(w**2)\nclass Model: pass\n"
    (tmp_path / "two.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "two.py"]) == 2
    told = capsys.readouterr()
    assert "gradient of loss: agrees" in told.out
    assert "two.py:check_sum: `check_sum` must return (function, arguments)" in told.err
    assert main(["check", "two.py:Model"]) == 2
    assert "Got 'Model', a class; name a method as Model.NAME." in capsys.readouterr().err


def test_an_error_of_one_target_among_several_names_its_place(capsys, tmp_path, monkeypatch):
    (tmp_path / "several.py").write_text(SEVERAL)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "several.py:Plain.loss", "several.py:loss_bad"]) == 2
    told = capsys.readouterr().err
    assert "several.py:7; --debug" in told and "not a pytree" not in told
