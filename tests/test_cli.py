"""The command line: what it prints, what it returns, and how it refuses."""

import json
import re
import subprocess
import sys

import pytest

from jaxnn.cli import main


def test_train_prints_one_json_object(capsys):
    assert main(["train", "--epochs", "3", "--json", "--layers", "20,10", "--optimizer", "adam", "--lr", "0.01"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {len(result[name]) for name in ("train_loss", "train_accuracy", "test_accuracy")} == {3}
    assert result["steps"] == 45 and result["train_loss"][-1] < result["train_loss"][0] < 2.4
    assert set(result["gradient_check"]) == {"W1", "b1", "W2", "b2", "W3", "b3"}
    assert max(result["gradient_check"].values()) < 1e-4


def test_train_shows_that_the_gradients_agree_and_then_learns(capsys):
    assert main(["train", "--epochs", "60"]) == 0
    out = capsys.readouterr().out
    assert out.index("numerical against automatic") < out.index("test accuracy")
    assert float(re.search(r"test accuracy (0\.\d+)\s*$", out)[1]) > 0.9


@pytest.mark.slow
def test_train_by_numerical_gradients(capsys):
    results = []
    for grad in ("numerical", "automatic"):
        assert main(["train", "--epochs", "1", "--grad", grad, "--layers", "10", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["train_loss"] == pytest.approx(results[1]["train_loss"], rel=1e-5)


def test_tour_agrees_with_the_chapter(capsys):
    assert main(["tour", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    different = {row["quantity"] for row in rows if row["here"] != row["chapter"]}
    assert different == {
        "a mini-batch of 10 (there: MNIST)",
        "lr = 10: further away than 1e10",
        "its loss (weights rounded to 8 digits)",
        "scores of the 2x3 network",
    }
    assert main(["tour"]) == 0
    assert "0.1999999999990898        0.1999999999990898" in capsys.readouterr().out


BAD = [
    ([], "the following arguments are required: COMMAND"),
    (["bake"], "invalid choice: 'bake'"),
    (["train", "--epochs", "0"], "argument --epochs: must be a whole number of at least 1. Got '0'"),
    (["train", "--epochs", "x"], "argument --epochs: must be a whole number of at least 1. Got 'x'"),
    (["train", "--lr", "nan"], "argument --lr: must be a finite number of at least 0. Got 'nan'"),
    (["train", "--layers", "50,"], "argument --layers: must be a whole number of at least 1. Got ''"),
    (["train", "--seed", "-1"], "argument --seed: must be a whole number of at least 0. Got '-1'"),
    (["train", "--grad", "none"], "argument --grad: invalid choice: 'none'"),
]


@pytest.mark.parametrize("argv, message", BAD)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, message):
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_a_directory_without_the_files_is_one_line(capsys, tmp_path):
    assert main(["train", "--data", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxnn train: error: `directory` must hold train-images-idx3-ubyte") and err.count("\n") == 1
    with pytest.raises(FileNotFoundError):
        main(["train", "--data", str(tmp_path), "--debug"])


def test_version_and_help_answer_without_jax():
    code = "import sys, jaxnn.cli\ntry: jaxnn.cli.main([sys.argv[1]])\nexcept SystemExit: pass\nassert 'jax' not in sys.modules"
    for flag in ("--version", "--help"):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    module = subprocess.run([sys.executable, "-m", "jaxnn", "--version"], capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"jaxnn \d+\.\d+\.\d+\n", module.stdout)
