"""Operators of object detection: regions of an image, and which of many boxes to keep."""

from __future__ import annotations

import itertools

import numpy as np

from palto.formats.onnx.table import Call, operator
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import Array


@operator("NonMaxSuppression", static=(0, 1, 2, 3, 4))
def suppress(
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """The best boxes that do not overlap, as rows (image, class, box). At once only."""
    corners = call.known(boxes, "the result's length")
    points = call.known(scores, "the result's length")
    count = 0 if most is None else call.ints(most, "how many")[0]
    limit = 0.0 if overlap is None else float(call.known(overlap, "the overlap").reshape(()))
    if call.attribute("center_point_box", 0):
        middle, size = corners[..., [1, 0]], corners[..., [3, 2]]
        low, high = middle - size / 2, middle + size / 2
    else:
        low = np.minimum(corners[..., :2], corners[..., 2:])
        high = np.maximum(corners[..., :2], corners[..., 2:])
    rows = []
    for image, kind in itertools.product(range(points.shape[0]), range(points.shape[1])):
        order = np.argsort(-points[image, kind], kind="stable")
        if least is not None:
            bar = call.known(least, "the least score").reshape(())
            order = order[points[image, kind][order] > bar]
        kept: list[int] = []
        while order.size and len(kept) < count:
            best, order = int(order[0]), order[1:]
            kept.append(best)
            order = order[_overlaps(low[image], high[image], best, order) <= limit]
        rows += [(image, kind, box) for box in kept]
    return F.asarray(np.array(rows, np.int64).reshape(-1, 3))


def _overlaps(low: Array, high: Array, one: int, others: Array) -> Array:
    """The share of their union that a box has in common with each of others."""
    edges = np.minimum(high[others], high[one]) - np.maximum(low[others], low[one])
    common = np.prod(np.maximum(edges, 0), axis=-1)
    area = np.prod(high - low, axis=-1)
    union = area[others] + area[one] - common
    result: Array = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return result


@operator("RoiAlign")
def roi_align(call: Call, x: Tensor, regions: Tensor, images: Tensor) -> Tensor:
    """Regions (R, 4) of images (N, C, H, W), each read at a grid of places between the pixels."""
    height, width = call.attribute("output_height", 1), call.attribute("output_width", 1)
    samples = call.attribute("sampling_ratio", 0)
    if samples <= 0:
        raise call.refusal("a sampling_ratio that depends on the sizes of the regions")
    default = "half_pixel" if call.version >= 16 else "output_half_pixel"
    is_shifted = call.attribute("coordinate_transformation_mode", default) == "half_pixel"
    call.bounded((regions.shape[0], x.shape[1], height * samples, width * samples))
    scaled = regions * call.attribute("spatial_scale", 1.0) - (0.5 if is_shifted else 0.0)

    def places(first: Tensor, last: Tensor, out: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Along an axis, the two pixels of each place (R, out * samples), with their weights."""
        size = last - first
        size = size if is_shifted else F.maximum(size, 1.0)
        steps = (np.arange(out * samples) + 0.5) / (out * samples)
        place = first[:, None] + size[:, None] * F.asarray(steps.astype(x.dtype))
        is_inside = (place >= -1) & (place <= n)
        held = F.clip(place, 0.0, float(n - 1))
        low = F.floor(held)
        high = F.minimum(low + 1, float(n - 1))
        share = held - low
        weights = (F.where(is_inside, part, 0.0) for part in (1 - share, share))
        return list(zip((F.astype(low, dtypes.int64), F.astype(high, dtypes.int64)), weights,
                        strict=True))  # fmt: skip

    rows = places(scaled[:, 1], scaled[:, 3], height, x.shape[2])
    columns = places(scaled[:, 0], scaled[:, 2], width, x.shape[3])
    shape = (regions.shape[0], height * samples, width * samples)
    pixels = F.permute_dims(x, (0, 2, 3, 1))
    image = F.broadcast_to(F.astype(images, dtypes.int64)[:, None, None], shape)
    parts = []
    for (row, weight), (column, factor) in itertools.product(rows, columns):
        where = [image, F.broadcast_to(row[:, :, None], shape),
                 F.broadcast_to(column[:, None, :], shape)]  # fmt: skip
        share = weight[:, :, None] * factor[:, None, :]
        parts.append(F.take_at(pixels, where) * share[..., None])
    cut = (regions.shape[0], height, samples, width, samples, x.shape[1])
    if call.attribute("mode", "avg") == "avg":
        total = parts[0] + parts[1] + parts[2] + parts[3]
        result = F.mean(F.reshape(total, cut), (2, 4))
    else:  # ONNX's largest is that of the weighted pixels
        result = F.max(F.reshape(F.stack(parts), (4, *cut)), (0, 3, 5))
    return F.permute_dims(result, (0, 3, 1, 2))
