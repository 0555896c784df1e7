"""The report works offline, escapes what it is given, and runs in a browser without a word of complaint."""

import html
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import threading

import pytest

from experiments.scaling import report, study
from tests.experiments.scaling import made_up_study
from tests.experiments.scaling.study_test import GRID

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
REPEATED_WIDTHS = (8, 12, 16, 20, 24, 28, 32)  # more than a figure has line styles


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> pathlib.Path:
    """The report of a study with everything in it, on results from a known surface."""
    folder = tmp_path_factory.mktemp("report")
    changes = GRID | {
        "seeds__repeats": 2, "data__repeated_unique_tokens": (2500.0,), "repeats__widths": REPEATED_WIDTHS,
        "repeats__epochs": (4.0, 16.0), "fit__bootstrap": 20, "fit__confidence": 0.9,
    }  # fmt: skip
    config = made_up_study.config(folder, **changes)
    config.name = "a<b>&"

    def run_all(_plan, _path, chosen, workdir, **_) -> None:
        made_up_study.pretend(workdir, chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.local, "run_all", run_all)
        study.run(config, folder / "my run", study.Launch(), yes=True, say=lambda _: None)
    return folder / "my run" / "report.html"


def test_the_page_needs_nothing_from_outside_itself(page) -> None:
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text) and "@import" not in text
    assert "http:" not in text and "https:" not in text and "<link" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_what_it_is_given_is_escaped(page) -> None:
    assert "a&lt;b&gt;&amp;" in page.read_text() and "a<b>" not in page.read_text()


def test_every_finished_trial_of_the_grid_can_be_pointed_at(page) -> None:
    text = page.read_text()
    planned = json.loads((page.parent / "plan.json").read_text())["trials"]
    for trial in planned:
        figures = 3 if trial["stage"] == "grid" else 0
        assert text.count(f'<g class="mark" data-mark="{trial["name"]}">') >= figures
        assert f'<tr data-mark="{trial["name"]}"' in text
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]+"', text)) == text.count("<svg ") >= 6


def test_more_sizes_than_there_are_line_styles_are_drawn(page) -> None:
    for width in REPEATED_WIDTHS:
        assert re.search(rf'<g class="mark" data-mark="repeats-u\d+-w{width}-e4">', page.read_text())


def test_bands_and_intervals_are_of_the_confidence_asked_for(page) -> None:
    text = page.read_text()
    assert text.count("90% band") == 3 and "90% interval" in text and "95% band" not in text


def test_the_frontier_is_drawn_past_the_last_member_of_the_family(page) -> None:
    found, family = (json.loads((page.parent / name).read_text()) for name in ("fit.json", "family.json"))
    assert found["bands"]["c"][-1] > max(member["budget"] for member in family["members"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5325.2, "5,325"),
        (11_400.0, "11,400"),
        (12_345_678.0, "12,350,000"),
        (1.21, "1.210"),
        (0.00099996, "0.001000"),
        (9.99996e12, "1.000e+13"),
        (1.2e-7, "1.200e-07"),
        (0.0, "0.000"),
        (None, "–"),  # noqa: RUF001
        (float("nan"), "–"),  # noqa: RUF001
    ],
)
def test_numbers_of_a_column_have_as_many_digits(value, said) -> None:
    assert report.significant(value) == said


def test_a_figure_has_as_many_digits_wherever_it_stands(page) -> None:
    text, fitted = page.read_text(), json.loads((page.parent / "fit.json").read_text())["approach3"]["huber"]
    assert text.count(f"{fitted['E']:.4f}") >= 3  # above all, as a parameter, in the figure
    number = r"([\d,.e+-]+)"
    for name in ("A", "B", "E", "alpha", "beta", "a"):
        row = rf'<th scope="row">{name}</th><td>{number}</td><td>{number} to {number}</td><td>{number}</td>'
        digits = [len(re.sub(r"e.*|[,.]", "", said).lstrip("0")) for said in re.findall(row, text)[0]]
        assert digits == [5, 5, 5, 5]
    members = text[text.index('<h2 id="family">') : text.index('<h2 id="curves">')]
    assert re.findall(r'<th scope="row">[^<]+</th><td>([^<]+)</td>', members) == ["1", "4", "16"]


def test_exact_commands_stand_on_the_page(page) -> None:
    text = html.unescape(page.read_text())
    assert f"--config FILE --workdir '{page.parent}'\n" in text
    assert f"--points '{page.parent}/points.csv' " in text
    assert "python -m cometjax.train '--config=experiments/configs/from_json.py:" in text
    assert (page.parent / "points.csv").read_text().count("\n") == 16


@pytest.mark.skipif(not CHROMIUM, reason="SKIPPED FOR LACK OF A BROWSER: no chromium on the PATH")
def test_a_browser_shows_it_without_console_errors_or_network(page, tmp_path) -> None:
    # The page tells a script of ours what it sees after a pointer has been over a mark.
    probe = """<script>
    window.addEventListener("load", function () {
      var mark = document.querySelector("svg .mark");
      var inner = mark.querySelector("path, use") || mark;
      inner.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: 5, clientY: 5}));
      var lit = document.querySelectorAll(".lit").length, tip = document.getElementById("tip");
      document.title = "lit=" + lit + " tip=" + tip.style.display + " says=" + tip.textContent +
        " loaded=" + performance.getEntriesByType("resource").length;
    });
    </script></body>"""
    served = tmp_path / "page.html"
    served.write_text(page.read_text().replace("</body>", probe))
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            asked.append(self.path)

        def __init__(self, *arguments) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
             "--dump-dom", f"http://127.0.0.1:{server.server_port}/page.html"],
            capture_output=True, text=True, check=True, timeout=180,
        )  # fmt: skip
    finally:
        server.shutdown()
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert {path for path in asked if path != "/favicon.ico"} == {"/page.html"}
    title = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    assert "tip=block" in title and "nats/token" in title and "loaded=0" in title
    assert int(re.search(r"lit=(\d+)", title).group(1)) >= 3


def test_a_fit_without_an_optimum_is_reported_and_not_drawn(tmp_path) -> None:
    config = made_up_study.config(tmp_path, **GRID)
    # The loss falls with the size, whatever the tokens: no budget has an optimum.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            study.local, "run_all",
            lambda _plan, _path, chosen, workdir, **_: made_up_study.pretend(
                workdir, chosen, noise=0.0, loss_of=lambda trial: 2.0 + 5.0 * trial.n**-0.3
            ),
        )  # fmt: skip
        found = study.run(config, tmp_path / "run", study.Launch(), yes=True, say=lambda _: None)
    assert found.refused
    assert "REFUSED" in (tmp_path / "run" / "report.html").read_text()
