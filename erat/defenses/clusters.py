"""Judges labels by clusters of similar images, without a network: wrong labels have no say in what is similar.

A network that has learned from wrong labels takes two classes for one where most images of the one wear the label of
the other. A cluster of images that look alike has the label counts of its true class, and the clusters share the
classes out among them: one label that is worn by images of many classes cannot name them all.

Shape suffixes: N samples, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.selection import balanced

SIDE = 16  # larger images are shrunk to this height and width: a cluster is about the coarse look, and costs less
POWER = 4.0  # how firmly classes are assigned to clusters; on the embedded digits 2, 4 and 8 were about as good


def thumbnails(images_NCHW: Tensor) -> Tensor:
    """Return the images as rows, shrunk to at most `SIDE` x `SIDE` pixels."""
    if max(images_NCHW.shape[-2:]) > SIDE:
        images_NCHW = F.adaptive_avg_pool2d(images_NCHW, SIDE)
    return images_NCHW.flatten(1)


def image_clusters(rows_ND: Tensor, count: int) -> Tensor:
    """Return the cluster of each image, int64 (N,), in 0..count-1, by k-means on the direction from the mean image.

    The result is the same on every worker, and in each call. A set of fewer different images has fewer clusters.
    """
    # Imported here, because they take seconds to load and few runs use them.
    from sklearn.cluster import KMeans  # type: ignore[import-untyped,unused-ignore]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    rows = rows_ND.float().cpu()
    rows = F.normalize(rows - rows.mean(0), dim=1)
    means = KMeans(min(count, len(rows)), n_init=2, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):  # several threads would add in another order each time
        warnings.simplefilter("ignore")  # fewer different images than clusters
        return torch.from_numpy(means.fit_predict(rows.numpy())).long().to(rows_ND.device)


def named(clusters_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Return class probabilities of each sample, float32 (N, K), by the label counts of its cluster.

    They are balanced over the classes (`erat.selection.balanced`), the soft form of an assignment of classes to
    clusters: where a label has too many claims, those that have no other class prevail.
    """
    count = int(clusters_N.max()) + 1
    pairs = torch.bincount(clusters_N * num_classes + labels_N, minlength=count * num_classes)
    counts = pairs.view(count, num_classes).double() + 1  # one more of each, as small clusters are no certainty
    return balanced((counts / counts.sum(1, keepdim=True))[clusters_N], POWER)[0]
