"""Judges labels by clusters of similar images, without a network: wrong labels have no say in what is similar.

A network that has learned from wrong labels takes two classes for one where most images of the one wear the label of
the other. A cluster of images that look alike has the label counts of its true class, and the clusters share the
classes out among them: one label that is worn by images of many classes cannot name them all.

Shape suffixes: N samples, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.selection import balanced

SIDE = 16  # larger images are shrunk to this height and width: a cluster is about the coarse look, and costs less
NEIGHBOURS = 10  # of each image in the graph; with 5 and 20 the names were right about as often
SIZES = (
    4  # numbers of clusters of the graph, over which names are averaged: from one for each class to all that are asked
)
POWER = 4.0  # how firmly classes are assigned to clusters; on the embedded digits 2, 4 and 8 were about as good
FIRM_POWER = 8.0  # the same for names averaged over several numbers of clusters, which are less clear


def thumbnails(images_NCHW: Tensor) -> Tensor:
    """Return the images as rows, shrunk to at most `SIDE` x `SIDE` pixels."""
    if max(images_NCHW.shape[-2:]) > SIDE:
        images_NCHW = F.adaptive_avg_pool2d(images_NCHW, SIDE)
    return images_NCHW.flatten(1)


def image_clusters(rows_ND: Tensor, count: int) -> Tensor:
    """Return the cluster of each image, int64 (N,), in 0..count-1, by k-means on the direction from the mean image.

    The result is the same on every worker, and in each call. A set of fewer different images has fewer clusters.
    """
    return _k_means(_directions(rows_ND), (count,), starts=2)[0].to(rows_ND.device)


def graph_clusters(rows_ND: Tensor, num_classes: int, each: int) -> Tensor:
    """Return the clusters of each image by k-means on its place in the graph of nearest neighbours, int64 (SIZES, N).

    A class of many shapes is then one cluster or a few, where pixels need many, each with few labels to count. No
    number of clusters is right for all sets, so that there are several: from one to `each` for a class.
    """
    rows, most = _directions(rows_ND), each * num_classes
    places = _graph_places(rows, min(most, len(rows) - 1)) if len(rows) > 2 else rows
    counts = [round(num_classes + (most - num_classes) * part / (SIZES - 1)) for part in range(SIZES)]
    return _k_means(places, counts, starts=10).to(rows_ND.device)


def _directions(rows_ND: Tensor) -> Any:
    """Return the rows without their mean and scaled to length 1, a float32 array."""
    rows = rows_ND.float().cpu()
    return F.normalize(rows - rows.mean(0), dim=1).numpy()


def _k_means(rows_ND: Any, counts: Sequence[int], starts: int) -> Tensor:
    """Return the clusters of the rows for each number of clusters, int64 (len(counts), N): the best of some starts."""
    # Imported here, because they take seconds to load and few runs use them.
    from sklearn.cluster import KMeans  # type: ignore[import-untyped,unused-ignore]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    found = []
    with warnings.catch_warnings(), threadpool_limits(1):  # several threads would add in another order each time
        warnings.simplefilter("ignore")  # fewer different images than clusters
        for count in counts:
            means = KMeans(min(count, len(rows_ND)), n_init=starts, random_state=0)
            found.append(torch.from_numpy(means.fit_predict(rows_ND)).long())
    return torch.stack(found)


def _graph_places(rows_ND: Any, size: int) -> Any:
    """Return the place of each image in the graph of nearest neighbours, a float64 array of shape (N, size).

    The coordinates are eigenvectors of the largest eigenvalues of the graph's normalised adjacency, each row scaled to
    length 1: images between which there are many paths of similar images are close, however different they look.

    Args:
        rows_ND: a float array, at least 3 rows.
        size: how many coordinates, from 1 to N - 1.

    Source: Ng, Jordan, Weiss, "On Spectral Clustering: Analysis and an algorithm", NeurIPS 2001.
    """
    import numpy as np
    from scipy.sparse import diags  # type: ignore[import-untyped,unused-ignore]
    from scipy.sparse.linalg import lobpcg  # type: ignore[import-untyped,unused-ignore]
    from sklearn.neighbors import kneighbors_graph  # type: ignore[import-untyped,unused-ignore]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # of vectors that are not exact, which k-means does not need
        one_way = kneighbors_graph(rows_ND, min(NEIGHBOURS, len(rows_ND) - 1))
        both_ways = (one_way + one_way.T).astype(np.float64)
        scale = diags(np.asarray(both_ways.sum(1)).ravel() ** -0.5)
        # By blocks: of an eigenvalue that separate parts of the graph share, Lanczos' method finds too few vectors.
        start = np.random.RandomState(0).normal(size=(len(rows_ND), size))
        _, vectors = lobpcg(scale @ both_ways @ scale, start, tol=1e-5, maxiter=300)
    places = scale @ vectors
    return places / np.linalg.norm(places, axis=1, keepdims=True).clip(1e-12)


def named(clusters_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Return class probabilities of each sample, float32 (N, K), by the label counts of its cluster.

    They are balanced over the classes (`erat.selection.balanced`), the soft form of an assignment of classes to
    clusters: where a label has too many claims, those that have no other class prevail.

    Args:
        clusters_N: the cluster of each sample; with shape (S, N), the clusters for S numbers of them, whose counts are
            averaged.
        labels_N: the given labels.
        num_classes: K.
    """
    each = [_shares(clusters, labels_N, num_classes) for clusters in clusters_N.view(-1, len(labels_N))]
    return balanced(torch.stack(each).mean(0), POWER if len(each) == 1 else FIRM_POWER)[0]


def _shares(clusters_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Return how frequent each label is in the cluster of each sample, float64 (N, K)."""
    count = int(clusters_N.max()) + 1
    pairs = torch.bincount(clusters_N * num_classes + labels_N, minlength=count * num_classes)
    counts = pairs.view(count, num_classes).double() + 1  # one more of each, as small clusters are no certainty
    return (counts / counts.sum(1, keepdim=True))[clusters_N]
