"""The constants of the colour tensors: what needs no torch to know them.

CIE Lab for D65 and the 2 degree observer, with the numbers that scikit-image uses.
"""

from __future__ import annotations

# `ab` is (a*, b*) / 128, so within [-1, 1].
AB_SCALE = 128.0

WHITE = (0.95047, 1.0, 1.08883)
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
# Below this Y, and this f(Y), the curve of Lab is a line: f = slope * Y + offset.
LAB_EPSILON, LAB_KNEE = 0.008856, 0.2068966
LAB_SLOPE, LAB_OFFSET = 7.787, 16.0 / 116.0
