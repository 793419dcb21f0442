"""What a worker needs, and how many trials have room on machines; no Ray is needed to count them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from erat.config import RunConfig
from erat.errors import UserError

PARTS = 10_000  # Ray divides a GPU into so many parts


def needs(config: RunConfig) -> dict[str, float]:
    """Return the cores ("CPU") and GPUs ("GPU") that Ray gives to one worker; with `resources.device=cpu`, no GPU.

    Raises:
        UserError: the run is to use CUDA and asks for no GPU, so that Ray's workers see none.
    """
    wanted = config.resources
    if wanted.device == "cuda" and not wanted.gpu:
        raise UserError(
            "resources.device=cuda needs resources.gpu above 0 on Ray, whose workers see no other GPU; "
            "got resources.gpu=0"
        )
    return {"CPU": float(wanted.cpu), "GPU": 0.0 if wanted.device == "cpu" else float(wanted.gpu)}


def per_device(gpu: float) -> int:
    """Return how many workers share a GPU of which each takes the share `gpu`; 1 if they take whole ones, or none."""
    return PARTS // max(1, round(gpu * PARTS)) if 0 < gpu < 1 else 1


def places(wanted: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Return how many workers have room on a node at the same time. A fraction of a GPU is of one device.

    Args:
        wanted: resource -> amount that each worker needs.
        node: resource -> amount that the node has.
    """
    found = []
    for kind, amount in wanted.items():
        there = node.get(kind, 0)
        if kind == "GPU" and 0 < amount < 1:
            found.append(int(there) * per_device(amount))
        elif amount:
            found.append(int(there / amount))
    return min(found, default=0)


def trials(wanted: Mapping[str, float], workers: int, fewest: int | None, nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many trials have room on these nodes at the same time; 0 if not even one has.

    Args:
        wanted: resource -> amount that each worker needs, all of it on one node.
        workers: number of workers of a trial.
        fewest: number of workers with which a trial can do if it must; none: all.
        nodes: resource -> amount, of each node.
    """
    found = sum(places(wanted, node) for node in nodes)
    return max(1, found // workers) if found >= (fewest or workers) else 0


def words(wanted: Mapping[str, float], gpus: float) -> str:
    """Return as text on which device each worker trains.

    Args:
        wanted: as `needs` returns it.
        gpus: number of GPUs that there are.
    """
    if share := wanted.get("GPU", 0.0):
        return f"each worker on {share:g} GPU{'s' * (share > 1)} of {gpus:g}"
    unused = f" ({gpus:g} GPU{'s' * (gpus > 1)} unused: resources.gpu=1 gives each worker one)" if gpus else ""
    return f"on the CPU{unused}"
