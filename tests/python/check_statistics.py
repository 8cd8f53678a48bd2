"""Holds the numbers that `mlomae compare` computes from a comparison's cells and images against scipy and statsmodels.

    python tests/python/check_statistics.py DIR

DIR is the folder of a comparison: means, intervals, sign-flip and Holm p-values and seeds needed of its summary.json
are computed anew from the differences in it, and those from cells.parquet. Accuracies and their bootstrap intervals are
computed anew from items.parquet.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

ALPHA, POWER, MIN_SEEDS = 0.05, 0.8, 6


def close(found, expected, what, tolerance=1e-9):
    assert abs(found - expected) <= tolerance * max(1.0, abs(expected)), f"{what}: {found}, not {expected}"


def sign_flip(d):
    if not np.any(d):
        return 1.0
    result = stats.permutation_test(
        (d, np.zeros(len(d))), lambda a, b, axis: np.sum(a - b, axis=axis), permutation_type="samples",
        n_resamples=np.inf, alternative="two-sided", vectorized=True)
    return float(result.pvalue)


def fewest(arms):
    n = MIN_SEEDS
    while arms * 0.5 ** (n - 1) >= ALPHA:
        n += 1
    return n


def check_items(folder, table):
    """Values and bootstrap intervals of cells.parquet from the rows of images in items.parquet."""
    cells = {}
    for row in pq.read_table(folder / "items.parquet").to_pylist():
        assert row["correct"] == int(row["label"] == row["predicted"])
        cells.setdefault((row["arm"], row["seed"], f"{row['eval']}.accuracy"), []).append(row)
    finished = {(r["arm"], r["seed"], r["metric"]): r for r in table if r["value"] is not None and not r["metric"].startswith("log.")}
    assert cells.keys() == finished.keys(), "every finished cell has its images"
    off = []
    for number, (key, rows) in enumerate(sorted(cells.items())):
        correct, row = np.array([r["correct"] for r in rows], dtype=float), finished[key]
        assert len({r["sample_id"] for r in rows}) == len(rows) == row["n"], f"images of {key}"
        close(row["value"], correct.mean(), f"value of {key}", 1e-12)
        if correct.min() == correct.max():
            assert row["ci_low"] == row["ci_high"] == correct.mean(), f"interval of {key}"
            continue
        expected = stats.bootstrap((correct,), np.mean, n_resamples=20_000, method="percentile", batch=500,
                                   random_state=np.random.default_rng(number)).confidence_interval
        # Ends of 1,000 resamples have a standard deviation of 0.085 standard errors, and lie on a grid of 1/n.
        error, grid = correct.std() / len(correct) ** 0.5, 1 / len(correct)
        for end, bound in [("ci_low", expected.low), ("ci_high", expected.high)]:
            assert abs(row[end] - bound) <= 0.4 * error + grid, f"{end} of {key}: {row[end]}, not {bound}"
            off.append((row[end] - bound) / error * (1 if end == "ci_high" else -1))
    # One that were systematically too wide or too narrow by a fifth of a standard error would be off by that.
    if len(off) >= 20:
        assert abs(np.mean(off)) < 0.1, f"intervals are off by {np.mean(off)} standard errors"
    return len(cells)


def main(folder):
    summary = json.loads((folder / "summary.json").read_text())
    table = pq.read_table(folder / "cells.parquet").to_pylist()
    values = {(r["arm"], r["metric"], r["seed"]): r["value"] for r in table if r["value"] is not None}
    assert values, "cells have values"
    families = {}
    for one in summary["comparisons"]:
        what = f"{one['arm']} against {one['reference']} in {one['metric']}"
        for seed, difference in one["differences"]:
            a = values[one["arm"], one["metric"], seed]
            close(difference, a - values[one["reference"], one["metric"], seed], what, 1e-12)
        d = np.array([difference for _, difference in one["differences"]])
        close(one["mean"], d.mean(), what)
        assert one["num_pairs"] == len(d)
        close(one["p"], sign_flip(d), f"p of {what}")
        if len(d) > 1 and d.std() > 0:
            close(one["sd"], d.std(ddof=1), what)
            interval = stats.ttest_1samp(d, 0).confidence_interval(1 - ALPHA)
            close(one["low"], interval.low, what)
            close(one["high"], interval.high, what)
        if one["p_holm"] is not None:
            families.setdefault(one["reference"], []).append(one)
    assert families, "the primary metric has verdicts"
    for reference, family in families.items():
        # Arms without results are tested too.
        tested = len([arm for arm in summary["tested"] if arm != reference])
        p = [one["p"] for one in family] + [1.0] * (tested - len(family))
        adjusted = multipletests(p, method="holm")[1]
        for one, p in zip(family, adjusted):
            close(one["p_holm"], p, f"Holm's p of {one['arm']}")
            shown = one["num_pairs"] >= MIN_SEEDS and p < ALPHA and (one["low"] > 0 or one["high"] < 0)
            expected = "not-shown" if not shown else "better" if (one["low"] > 0) == one["is_higher_better"] else "worse"
            assert one["verdict"] == expected, f"verdict on {one['arm']}: {one['verdict']}, not {expected}"
            if not shown and one["sd"] and one["mean"]:
                effect, level = abs(one["mean"]) / one["sd"], ALPHA / tested
                n = max(fewest(tested), math.ceil(max(2, float(np.max(TTestPower().solve_power(
                    effect_size=effect, alpha=level, power=POWER, alternative="two-sided")))))) if effect < 3 else None
                if n is not None and n < 10_000:
                    assert one["seeds_needed"] == n, f"seeds for {one['arm']}: {one['seeds_needed']}, not {n}"
    items = check_items(folder, table)
    num = len(summary["comparisons"])
    print(f"{num} comparisons and {sum(map(len, families.values()))} verdicts agree with scipy and statsmodels, "
          f"and {items} bootstrap intervals with scipy")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
