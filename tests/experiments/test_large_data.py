from __future__ import annotations

import numpy as np

from medsaga.data import decathlon_datalist
from medsaga.experiments.large_data import write_volumes
from medsaga.reading import open_image


def test_volumes_are_cases_with_labels_of_three_classes(tmp_path):
    write_volumes(tmp_path, 3)
    cases = decathlon_datalist(tmp_path)
    assert len(cases) == len({case["patient"] for case in cases}) == 3
    contents = [open_image(case["image"]).load() for case in cases]
    assert not np.array_equal(contents[0], contents[1])
    assert set(np.unique(open_image(cases[0]["label"], label=True).load())) == {0, 1, 2}
