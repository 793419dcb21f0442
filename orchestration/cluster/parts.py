"""Send the parts that the running program registered itself to every process of the cluster, using `cloudpickle`.

A part is a defense, corruption, data set or backbone. Parts that an installed plugin registers need not be sent: the
other processes load the plugin. `cloudpickle` sends a class or function of an importable module by name only, so that
module must be importable in the other process; one that was defined in a script or notebook is sent with its code.
"""

from __future__ import annotations

import pickle
from functools import partial

import cloudpickle

from erat import plugins
from erat.errors import UserError
from erat.keys import known_keys
from erat.registration import REGISTRIES

Packed = list[tuple[str, str, bytes]]  # (kind of part, its registered name, the pickled part)


def pack() -> Packed:
    """Return the pickled parts that this program registered and that other processes therefore lack.

    Raises:
        UserError: A part cannot be pickled.
    """
    packed = []
    for kind, registry in REGISTRIES.items():
        for name, part in registry.added().items():
            try:
                packed.append((kind, name, cloudpickle.dumps(part)))
            except Exception as error:  # a user's class may raise anything while it is pickled
                raise UserError(
                    f"{kind} {name!r} cannot be sent to Ray's workers ({type(error).__name__}: {error}): "
                    "put it into a module of its own, or install it as a plugin"
                ) from error
    return packed


def expect(packed: Packed) -> None:
    """Have this process register the given parts as soon as an unknown name is looked up in a registry."""
    for kind, name, content in packed:
        plugins.expect(f"{kind} {name!r} of the program that started this run", partial(_adopt, kind, name, content))


def _adopt(kind: str, name: str, content: bytes) -> None:
    part, known = pickle.loads(content)  # may import the module that registers the part
    registry = REGISTRIES[kind]
    if name in registry:
        registry.remove(name)
    registry.add(name, part, known)
    known_keys.cache_clear()
