"""The command: any table with the right columns, one line for a wrong one, and a result that says what was found."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.errors import UserError
from experiments.scaling import fit, points, surface

TRUE = surface.Surface(A=400.0, B=1500.0, E=1.7, alpha=0.34, beta=0.36, objective=0.0)


def runs(budgets=4, sizes=6) -> list[dict[str, float]]:
    rows = []
    for c in 1e18 * 10.0 ** np.arange(budgets):
        for n in TRUE.optimum(np.array([c]))[0][0] * np.geomspace(0.2, 5, sizes):
            rows.append({"size": n, "tokens": c / (6 * n), "flops": c, "nats": float(TRUE.loss(n, c / (6 * n)))})
    return rows


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["size", "tokens", "flops", "nats"])
        writer.writeheader()
        writer.writerows(runs())
    return path


def test_the_command_writes_what_it_found(table, tmp_path) -> None:
    command = [
        sys.executable, "-m", "experiments.scaling.fit", f"--points={table}", "--n=size", "--c=flops", "--loss=nats",
        f"--out={tmp_path / 'fit.json'}", "--bootstrap=20",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "REFUSED" not in done.stdout and "passed" in done.stdout
    result = json.loads((tmp_path / "fit.json").read_text())
    huber = result["approach3"]["huber"]
    assert huber["alpha"] == pytest.approx(TRUE.alpha, rel=1e-3) and huber["E"] == pytest.approx(TRUE.E, rel=1e-3)
    for approach in ("approach1", "approach2"):
        assert result[approach]["n_exponent"] == pytest.approx(TRUE.n_exponent, abs=0.05)
    assert set(result["approach3"]["intervals"]) == {"A", "B", "E", "alpha", "beta", "n_exponent"}
    assert result["holdout"]["largest"]["error"] < 1e-4 and len(result["holdout"]["by_budget"]) == 4
    assert result["refused"] == [] and len(result["gates"]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.json", "runs.csv"]


def test_csv_and_json_lines_tokens_and_compute_are_the_same_runs(table, tmp_path) -> None:
    lines = tmp_path / "runs.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in runs()))
    by_compute = points.load(table, n="size", c="flops", loss="nats")
    by_tokens = points.load(lines, n="size", d="tokens", loss="nats")
    np.testing.assert_allclose(by_compute.d_P, by_tokens.d_P)
    np.testing.assert_allclose(by_compute.c_P, by_tokens.c_P)


def test_the_highest_losses_can_be_left_out(table) -> None:
    whole = points.load(table, n="size", c="flops", loss="nats")
    fewer = points.load(table, n="size", c="flops", loss="nats", drop_highest=3)
    assert len(fewer) == len(whole) - 3
    assert fewer.loss_P.max() < np.sort(whole.loss_P)[-3]


@pytest.mark.parametrize(
    ("text", "says"),
    [("size,flops,nats\n1e6,1e18,nan\n", "line 2, column 'nats'"), ("size,flops,nats\n1e6,1e18,3\n1e6,,3\n", "line 3"),
     ("size,flops,nats\n1e6,-1,3\n", "'flops'"), ("size,flops\n1e6,1e18\n", "no column 'nats'"), ("", "no runs"),
     ("size,flops,nats\n", "no runs"), ("size,flops,nats\n1e6,1e18\n", "line 2")],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named_by_line_and_column(tmp_path, text, says) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        points.load(path, n="size", c="flops", loss="nats")


@pytest.mark.parametrize(("text", "says"), [("{}\n{", "line 2"), ("[1]\n", "line 1"), ('{"size": 1}\n', "no column")])
def test_broken_json_lines_are_named(tmp_path, text, says) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        points.load(path, n="size", c="flops", loss="nats")


def test_too_few_runs_are_refused() -> None:
    few = points.make_points([1e6] * 6, [1e9] * 6, [3.0] * 6)
    with pytest.raises(UserError, match="too few"):
        fit.fit(few)


def test_a_closed_gate_is_said_aloud(tmp_path) -> None:
    rows = [row for row in runs(budgets=2)]
    few = points.make_points([r["size"] for r in rows], [r["tokens"] for r in rows], [r["nats"] for r in rows])
    result = fit.fit(few, sensitivity=False)
    assert any("3 are needed" in reason for reason in result["refused"])
    assert "REFUSED  budgets" in fit.describe(result)
