"""The table of quality: where the oracle clicks, and what it is compared with."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality import METRICS, oracle_points, quality_table


def test_the_oracle_clicks_where_each_large_defect_is_deepest():
    mask = np.zeros((100, 100), bool)
    mask[10:31, 40:61] = True  # centre (50, 20)
    mask[35, 5:95] = True  # 0.9 %, one pixel thin
    mask[80:84, 80:84] = True  # 0.16 %: too small
    mask[90:100, 0:10] = True  # in a corner; the image's border is a border of the defect
    found = list(oracle_points(mask))
    assert len(found) == 3
    for defect, point in found:
        column, row = point[0].astype(int)
        assert defect[row, column]
    (square, centre), _, (_, corner) = found
    assert square.sum() == 21 * 21
    assert centre.tolist() == [[50, 20]]
    assert corner[0] == pytest.approx([4.5, 94.5], abs=0.6)


def test_the_oracle_mean_is_over_defects_and_the_others_over_categories():
    steps = ["clip", "points"]
    results = pd.DataFrame(
        [{"category": name, "step": step} | dict.fromkeys(METRICS, 0.5) for name in ("a", "mean") for step in steps]
    )
    oracle = pd.DataFrame(
        {"category": ["a", "a", "a", "b"], "step": ["points"] * 4, "iou": [0.2, 0.2, 0.2, 1.0], "predicted_iou": 0.0}
    )
    table = quality_table(results, oracle).set_index(["category", "row", "metric"])["value"]
    assert table["a", "oracle points", "iou"] == pytest.approx(0.2)
    assert table["mean", "oracle points", "iou"] == pytest.approx(0.4)
    assert table["mean", "clip", "pixel_ap"] == 0.5
