"""Judges labels by clusters of similar images, without a network: wrong labels have no say in what is similar.

A network that has learned from wrong labels takes two classes for one where most images of the one wear the label of
the other. A cluster of images that look alike has the label counts of its true class, and the clusters share the
classes out among them: one label that is worn by images of many classes cannot name them all.

Shape suffixes: N samples, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.selection import balanced

SIDE = 16  # larger images are shrunk to this height and width: a cluster is about the coarse look, and costs less
NEIGHBOURS = 10  # of each image in the graph; with 5 and 20 the names were right about as often
POWER = 4.0  # how firmly classes are assigned to clusters; on the embedded digits 2, 4 and 8 were about as good


def thumbnails(images_NCHW: Tensor) -> Tensor:
    """Return the images as rows, shrunk to at most `SIDE` x `SIDE` pixels."""
    if max(images_NCHW.shape[-2:]) > SIDE:
        images_NCHW = F.adaptive_avg_pool2d(images_NCHW, SIDE)
    return images_NCHW.flatten(1)


def image_clusters(rows_ND: Tensor, count: int, graph: bool = False) -> Tensor:
    """Return the cluster of each image, int64 (N,), in 0..count-1, by k-means on the direction from the mean image.

    The result is the same on every worker, and in each call. A set of fewer different images has fewer clusters.

    Args:
        rows_ND: the images as rows, as from `thumbnails`.
        count: how many clusters, at least 1.
        graph: k-means on the image's place among its neighbours instead, in as many coordinates as there are clusters.
            A class of many shapes is then one cluster or two, where pixels need many, each with few labels to count.
    """
    # Imported here, because they take seconds to load and few runs use them.
    from sklearn.cluster import KMeans  # type: ignore[import-untyped,unused-ignore]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    rows = rows_ND.float().cpu()
    places = F.normalize(rows - rows.mean(0), dim=1).numpy()
    means = KMeans(min(count, len(rows)), n_init=10 if graph else 2, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):  # several threads would add in another order each time
        warnings.simplefilter("ignore")  # fewer different images than clusters
        if graph and len(rows) > 2:
            places = _graph_places(places, min(count, len(rows) - 1))
        return torch.from_numpy(means.fit_predict(places)).long().to(rows_ND.device)


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

    one_way = kneighbors_graph(rows_ND, min(NEIGHBOURS, len(rows_ND) - 1))
    both_ways = (one_way + one_way.T).astype(np.float64)
    scale = diags(np.asarray(both_ways.sum(1)).ravel() ** -0.5)
    # By blocks: of an eigenvalue that many separate parts of the graph share, Lanczos' method finds too few vectors.
    start = np.random.RandomState(0).normal(size=(len(rows_ND), size))
    _, vectors = lobpcg(scale @ both_ways @ scale, start, tol=1e-5, maxiter=300)
    places = scale @ vectors
    return places / np.linalg.norm(places, axis=1, keepdims=True).clip(1e-12)


def named(clusters_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Return class probabilities of each sample, float32 (N, K), by the label counts of its cluster.

    They are balanced over the classes (`erat.selection.balanced`), the soft form of an assignment of classes to
    clusters: where a label has too many claims, those that have no other class prevail.
    """
    count = int(clusters_N.max()) + 1
    pairs = torch.bincount(clusters_N * num_classes + labels_N, minlength=count * num_classes)
    counts = pairs.view(count, num_classes).double() + 1  # one more of each, as small clusters are no certainty
    return balanced((counts / counts.sum(1, keepdim=True))[clusters_N], POWER)[0]
