"""Runs become tables, orderings and pages; runs of other weights do not."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lifelong_core.charts import LINES
from lifelong_core.errors import FileError
from lifelong_core.evaluation.orderings import SINGLE, STATEMENTS, best_single_adapter
from lifelong_core.evaluation.report import _digits, curve, write_report
from lifelong_core.evaluation.table import read_table, summarise, update_table
from lifelong_core.evaluation.values import VALUES
from lifelong_core.evaluation.ways import way_named
from lifelong_core.files import write_json
from lifelong_core.methods import METHODS

METRICS = [
    *("ia", "ta", "tfr_ia", "tfr_ta", "a_mmd", "f_mmd", "bwt_mmd", "kid", "i2i", "kept_gain"),
    *("base_drift", "trained_percent", "stored_percent", "seconds"),
]


def result(
    method: str, seed: int, mmd: float, weights: str = "w1", *, ia: float = 0.7
) -> dict[str, Any]:
    """A run over two concepts that left `ia` of the first one's IA of 0.9; the other has more."""

    def cell(concept: int, ia: float) -> dict[str, Any]:
        wobble = 0.01 * seed + 0.1 * concept
        return {"concept": concept, "ia": ia, "ta": 0.3, "mmd": mmd + wobble, "kid": 2 * mmd}

    gains = {"ia_base": 0.4, "ia_alone": 0.9}
    return {
        "method": method,
        "stream": "toys5",
        "stream_seed": seed,
        "weights": weights,
        "concepts": [{"token": "a", "noun": "dog"}, {"token": "b", "noun": "cat"}],
        "trained_percent": 1.5,
        "stored_percent": 3.0,
        "lessons": [{"seconds": 10.0, "peak_mib": 5.0}, {"seconds": 12.0, "peak_mib": None}],
        "measured": {
            "world_clip": {
                "cells": [
                    {"after": 1, **cell(1, 0.9)},
                    {"after": 2, **cell(1, ia)},
                    {"after": 2, **cell(2, ia + 0.1)},
                ],
                "final": [
                    {**cell(1, ia), "f_mmd": 0.05, **gains},
                    {**cell(2, ia + 0.1), "f_mmd": None, **gains},
                ],
                "drift": {"ta": 0.2, "ta_base": 0.3, "kid": 0.01},
            }
        },
        "settings": {"lesson": {}, "protocol": {"pictures": 4, "precision": "fp32"}},
    }


def test_the_summary_has_every_metric_as_mean_and_interval() -> None:
    summary = summarise([result("lora", 2, 0.5), result("lora", 3, 0.5)])
    found = summary["methods"]["lora"]
    assert list(found) == METRICS == list(VALUES)
    assert found["ia"][0] == found["i2i"][0] == pytest.approx(0.75)
    assert found["tfr_ia"] == pytest.approx([0.2, 0.2, 0.2])
    assert found["bwt_mmd"] == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    assert found["f_mmd"] == [0.05, 0.05, 0.05]
    assert found["kept_gain"][0] == pytest.approx((0.3 + 0.4) / 0.5 / 2)
    assert found["kept_gain"][1] <= found["kept_gain"][0] <= found["kept_gain"][2]
    assert found["seconds"][0] == 11.0
    assert found["base_drift"] == [0.01, 0.01, 0.01]
    assert summary["best_single_adapter"]["name"] == "lora"
    assert summary["weights"] == "w1" and summary["extractor"] == "world_clip"


def test_orderings_compare_pairs_and_hold_when_the_interval_says_so() -> None:
    runs = [
        result(method, seed, mmd)
        for seed in (2, 3)
        for method, mmd in [("lora", 0.5), ("ewc", 0.4), ("ewc_dc", 0.4), ("lora_merge", 0.9)]
    ]
    found = summarise(runs)["orderings"]
    better = found["EWC is better than sequential LoRA (A_MMD)"]
    assert better["holds"] and better["difference"] == pytest.approx([0.1, 0.1, 0.1])
    assert not found["EWC DC is better than EWC (KID)"]["holds"]
    worst = found["LoRA merge is worst (A_MMD)"]
    assert worst["holds"] and worst["against"] == "lora"
    assert worst["difference"][0] == pytest.approx(0.4)
    assert not any("C-LoRA" in text for text in found)


def test_statements_on_similarity_want_more_of_it_and_less_forgetting() -> None:
    runs = [
        result(method, seed, 0.5, ia=ia)
        for seed in (2, 3)
        for method, ia in [("l2dm", 0.85), ("svdiff_ewc", 0.6), ("svdiff_lwf", 0.8), ("lora", 0.95)]
    ]
    found = summarise(runs)["orderings"]
    assert [text for text in found if "L²DM" in text] == [
        "L²DM is better than each of its baselines (IA ↑)",
        "L²DM is better than each of its baselines (TFR-IA ↓)",
    ]
    for text in (text for text in found if "L²DM" in text):
        assert found[text]["holds"] and found[text]["against"] == "svdiff_lwf"
        assert found[text]["difference"][0] == pytest.approx(0.05)


def test_the_best_single_adapter_is_no_upper_bound() -> None:
    kept: dict[str, list[float] | None]
    kept = {"hard_routing": [1.0, 1.0, 1.0], "joint": [0.99] * 3, "textual_inversion": [0.98] * 3}
    assert best_single_adapter(kept, dict.fromkeys(kept, 2)) is None
    kept |= {"ewc": [0.8, 0.7, 0.9], "ewc+vera": [0.85, 0.7, 0.9], "lora": None}
    kept |= {"ewc+vera+steps=400": [0.9] * 3, "l2dm": [0.97] * 3}
    streams = dict.fromkeys(kept, 2)
    best = {"name": "ewc+vera", "kept_gain": [0.85, 0.7, 0.9]}
    assert best_single_adapter(kept, streams) == best
    kept |= {"svdiff": [0.95] * 3}
    assert best_single_adapter(kept, {**streams, "svdiff": 1}) == best
    assert best_single_adapter(kept, {**streams, "svdiff": 2}) != best
    runs = [result("lora", 2, 0.5), result("lora", 3, 0.5), result("ewc", 2, 0.5, ia=0.8)]
    assert summarise(runs)["best_single_adapter"]["name"] == "lora"


def test_single_adapters_are_those_of_the_table_that_neither_replay_nor_route() -> None:
    trained = {"dreambooth_lora_ewc", "svdiff_lwf", "null_space", "custom_diffusion_merge"}
    assert trained <= {*SINGLE}
    assert not {"l2dm", "cidm", "lora_switch", "hard_routing", "textual_inversion"} & {*SINGLE}


def test_statements_compare_methods_of_the_table_with_others() -> None:
    for statement in STATEMENTS:
        assert statement.method in METHODS and statement.method not in statement.rivals
        assert {way_named(name).name for name in statement.rivals} == {*statement.rivals}


def test_a_table_grows_and_drops_runs_of_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "toys5.json"
    update_table(path, [result("lora", 2, 0.5)])
    update_table(path, [result("ewc", 2, 0.4), result("lora", 2, 0.7)])
    runs = read_table(path)["runs"]
    assert [(run["method"], run["measured"]["world_clip"]["final"][0]["kid"]) for run in runs] == [
        ("lora", 1.4),
        ("ewc", 0.8),
    ]
    assert "--stream toys5 --stream-seed 2 --methods lora,ewc" in read_table(path)["command"]
    with caplog.at_level(logging.WARNING):
        update_table(path, [result("ewc", 3, 0.4, weights="w2")])
    assert "2 of 2 runs" in caplog.text
    table = read_table(path)
    assert [run["stream_seed"] for run in table["runs"]] == [3]
    assert table["summary"]["weights"] == "w2"


def test_runs_of_two_precisions_share_a_table_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "toys5.json"
    other = result("l2dm", 3, 0.4)
    other["settings"]["protocol"]["precision"] = "bf16"
    write = partial(write_report, path, tmp_path)
    update_table(path, [result("lora", 2, 0.5), result("ewc", 2, 0.5)])
    write()
    assert "Lessons and pictures" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    update_table(path, [other])
    write()
    assert "in fp32, but bf16 in l2dm." in (tmp_path / "report.md").read_text(encoding="utf-8")
    table = read_table(path)
    assert table["settings"]["protocol"] == {"pictures": 4}
    first, second = table["command"].split(" && ")
    assert first.endswith("--stream-seed 2 --methods lora,ewc --precision fp32")
    assert second.endswith("--stream-seed 3 --methods l2dm --precision bf16")


def test_the_report_shows_tables_plots_and_sheets(tmp_path: Path) -> None:
    path = tmp_path / "toys5.json"
    rows = ("lora", "ewc", "replay_real+steps=400")
    update_table(
        path, [result(name, 2, value) for name, value in zip(rows, (0.5, 0.4, 0.3), strict=True)]
    )
    folder = tmp_path / "toys5"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "ewc-s2.jpg")
    files = write_report(path, folder)
    assert all(file.stat().st_size for file in files)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| lora | 1 | 75 [70, 80] |" in text and "EWC is better than sequential LoRA" in text
    page = (folder / "index.html").read_text(encoding="utf-8")
    for shown in (text, page):
        assert "replay_real+steps=400: replay of real pictures; breaks the rule" in shown
    assert "ewc-s2.jpg" in page and "lora-s2.jpg" not in page
    assert all(file.name in page for file in files if file.suffix == ".png")
    with Image.open(folder / "matrix-lora.png") as image:
        colours = image.convert("RGB").getcolors(100_000)
    assert colours is not None and len(colours) > 5


def test_the_report_tells_of_other_streams_and_other_machines(tmp_path: Path) -> None:
    path = tmp_path / "toys5.json"
    runs = [result("lora", 2, 0.5), result("lora", 3, 0.5)]
    runs[0]["hardware"] = {"processor": "CPU", "gpu": None}
    update_table(path, runs)
    write_report(path, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Streams differ" not in text and "different machines" not in text
    other = result("ewc", 2, 0.4)
    other["hardware"] = {"processor": "CPU", "gpu": "GPU"}
    update_table(path, [other])
    write_report(path, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "curve-ia.png") as image:
        seen = {colour for _, colour in image.convert("RGB").getcolors(100_000)}
    assert LINES[0] in seen and LINES[1] not in seen
    assert "Streams differ" in text and "beside: CPU (1 of the runs), GPU (1 of the runs)." in text


@pytest.mark.parametrize(
    ("number", "text"), [(1696.6, "1697"), (0.0123456, "0.0123"), (-54.06, "-54.1"), (205.4, "205")]
)
def test_numbers_have_three_digits_and_no_exponent(number: float, text: str) -> None:
    assert _digits(number) == text


def test_curves_leave_out_rows_with_the_newest_concept_only() -> None:
    cells = {(1, 1): 1.0, (2, 1): 2.0, (2, 2): 4.0, (3, 3): 9.0, (4, 1): 1.0, (4, 4): 2.0}
    assert curve(cells) == [(1, 1.0), (2, 3.0), (4, 1.5)]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "toys5.json", {"summary": {}})
    with pytest.raises(FileError, match="no table"):
        write_report(path, tmp_path)
    with pytest.raises(FileError, match="no runs"):
        summarise([])
