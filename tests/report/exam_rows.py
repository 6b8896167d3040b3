"""One exam as `keel reward-model` writes it to result.json, with round numbers."""

from typing import Any

Row = dict[str, Any]


def share(mean: float | None, low: float | None, high: float | None, n: int = 400) -> Row:
    return {"mean": mean, "low": low, "high": high, "n": n}


def reliability(bins: dict[int, tuple[int, float, float]]) -> list[Row]:
    """`{place of ten: (count, stated, right)}`; the other bins are empty."""
    rows = []
    for b in range(10):
        count, stated, right = bins.get(b, (0, None, None))
        rows.append({"low": 0.5 + 0.05 * b, "high": 0.55 + 0.05 * b, "count": count, "confidence": stated,
                     "accuracy": right})
    return rows


def exam() -> Row:
    """What `keel reward-model` writes of one exam."""
    before = {"ece": 0.08, "ece_equal_mass": 0.09, "brier": 0.22, "nll": 0.65}
    after = {"ece": 0.03, "ece_equal_mass": 0.04, "brier": 0.2, "nll": 0.6}
    bins = {0: (200, 0.525, 0.6), 5: (181, 0.75, 0.7), 9: (19, 0.96, 1.0)}
    return {
        "n": 400,
        "n_prompts": 300,
        "accuracy": share(0.7, 0.66, 0.74),
        "longer_wins": share(0.6, 0.56, 0.64),
        "views": {
            "original": share(0.7, 0.66, 0.74),
            "without_suspects": share(0.8, 0.76, 0.84, 300),
            "relabelled": share(0.75, 0.71, 0.79),
            "judge": share(0.72, 0.68, 0.76, 350),
            "intersection": share(None, None, None, 0),
        },
        "subsets": {"domain": {"a": share(0.73, 0.69, 0.77, 300), "b": share(0.6, 0.5, 0.7, 100)}},
        "lengths": {
            "quarters": [
                {"shortest": 5, "longest": 20, **share(0.66, 0.6, 0.72, 200)},
                {"shortest": 20, "longest": 90, **share(0.74, 0.68, 0.8, 200)},
            ],
            "chosen_longer": share(0.8, 0.74, 0.86, 230),
            "chosen_shorter": share(0.55, 0.47, 0.63, 160),
        },
        "quantiles": [
            {"strength": i - 1.0, **share(0.4 + 0.05 * i, 0.3 + 0.05 * i, 0.5 + 0.05 * i, 40)} for i in range(10)
        ],
        "gap": {"mean": 0.8, "std": 1.5, "histogram": [10, *[0] * 6, 90, 250, *[0] * 6, 50]},
        "calibration": {
            "temperature": 2.0,
            "as_it_is": before | {"reliability": reliability(bins)},
            "after_temperature": after | {"reliability": reliability({0: (400, 0.53, 0.5)})},
        },
    }
