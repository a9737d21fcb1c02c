"""The colour difference by torch: the published pairs, and scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000

from training.ciede2000 import ciede2000

# Of the table of test data in Sharma, Wu and Dalal: L*, a*, b* of both colours, and their difference.
PUBLISHED = (
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
)


@pytest.mark.parametrize(("first", "second", "difference"), PUBLISHED)
def test_published_pairs(first: tuple[float, ...], second: tuple[float, ...], difference: float) -> None:
    pair = [torch.tensor(each, dtype=torch.float64) for each in (first, second)]
    assert ciede2000(*pair).item() == pytest.approx(difference, abs=5e-5)
    assert ciede2000(*reversed(pair)).item() == pytest.approx(difference, abs=5e-5)


def test_it_is_that_of_scikit_image_and_0_for_equal_colours() -> None:
    random = np.random.default_rng(0)
    first = np.stack([random.uniform(0, 100, 5000), *random.normal(0, 30, (2, 5000))]).astype(np.float32)
    second = (first + random.normal(0, 10, first.shape)).astype(np.float32)
    first[1:, :100] = second[1:, 50:150] = 0  # greys
    expected = deltaE_ciede2000(first.T.astype(float), second.T.astype(float))
    found = ciede2000(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    assert found.mean() == pytest.approx(expected.mean(), rel=1e-5)
    assert np.abs(found - expected).max() < 0.02
    assert ciede2000(torch.from_numpy(first), torch.from_numpy(first)).max() == 0
