"""Parts that the running program registered itself travel to every process of the cluster, by `cloudpickle`.

What an installed plugin registers is found there without that. A class or function of an importable module travels as
its name, and the module must be importable there; one of a script or a notebook travels whole.
"""

from __future__ import annotations

import pickle
from functools import partial

import cloudpickle

from erat import plugins
from erat.errors import UserError
from erat.registration import REGISTRIES

Packed = list[tuple[str, str, bytes]]  # (kind, name, part)


def pack() -> Packed:
    """Return the parts that other processes lack.

    Raises:
        UserError: one of them cannot travel.
    """
    packed = []
    for kind, registry in REGISTRIES.items():
        for name, part in registry.added().items():
            try:
                packed.append((kind, name, cloudpickle.dumps(part)))
            except Exception as error:  # whatever a class of others holds
                raise UserError(
                    f"{kind} {name!r} cannot be sent to Ray's workers ({type(error).__name__}: {error}): "
                    "put it into a module of its own, or install it as a plugin"
                ) from error
    return packed


def expect(packed: Packed) -> None:
    """Register these parts in this process when next a name is looked for that is not known."""
    for kind, name, content in packed:
        plugins.expect(f"{kind} {name!r} of the program that started this run", partial(_adopt, kind, name, content))


def _adopt(kind: str, name: str, content: bytes) -> None:
    part = pickle.loads(content)  # may import the module that registers it
    if name not in REGISTRIES[kind]:
        REGISTRIES[kind].add(name, part)
