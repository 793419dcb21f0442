"""Read YAML files that users write, with limits, so that no file takes long and no part of it is silently ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from erat.errors import UserError, shown
from erat.records import DamagedError, read_bytes

MOST_BYTES = 2**20
MOST_DEPTH = 30
MOST_VALUES = 200_000  # the values of an alias are counted each time that it is used
MOST_NUMBER = 1000  # characters in a number: PyYAML's time for a number of base 60 grows with their square
# What PyYAML raises for an invalid date, a number of 5,000 digits, `!!bool maybe`, `!!timestamp x` and the like.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, TypeError)

_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Read a file of plain YAML, which holds mappings, lists, numbers, texts, dates, true, false and null.

    Raises:
        UserError: The file cannot be read, is not UTF-8 or not valid YAML, has a key twice, is larger than 1 MiB, is
            nested more than 30 levels deep, has more than 200,000 values, or has an alias that contains itself.
    """
    return _read(path, lambda loader, root: loader.construct_document(root))


def read_texts(path: Path) -> Any:
    """Read a file of plain YAML, but keep every value as the text that the file has. `null` is read as None.

    Raises:
        UserError: As for `read_yaml`.
    """
    return _read(path, lambda loader, root: _texts(root))


_PLAIN = ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")


def _texts(node: yaml.Node) -> Any:
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in _PLAIN:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a value must be plain, got one of {shown(node.tag)}")
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _texts(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_texts(entry) for entry in node.value]
    return None if node.tag.endswith(":null") else str(node.value)


def _read(path: Path, construct: Callable[[Any, yaml.Node], Any]) -> Any:
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8")
        _refuse_depth(text)
        return _constructed(text, construct)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except DamagedError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: it is not UTF-8 at byte {error.start}") from error
    except _NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error


def _refuse_depth(text: str) -> None:
    """Raise `yaml.YAMLError` if the text is nested too deep. This must precede the construction, which is recursive."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MOST_DEPTH} deep")


def _constructed(text: str, construct: Callable[[Any, yaml.Node], Any]) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _size(root, {})
        return construct(loader, root)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the number of values in a node and below it, where an alias counts each time that it is used.

    Args:
        node: the node.
        known: id of a node -> its number of values, or None while they are being counted. This function fills it.

    Raises:
        yaml.YAMLError: There are more than `MOST_VALUES`, a value that is not text has more than `MOST_NUMBER`
            characters, an alias contains itself, or a key is not plain text or is given twice.
    """
    if isinstance(node, yaml.ScalarNode) and len(node.value) > MOST_NUMBER and not node.tag.endswith(":str"):
        raise yaml.YAMLError(f"a value that is no text has {len(node.value):,} characters")
    if id(node) not in known:
        known[id(node)] = None
        size = 1 + sum(_size(child, known) for child in _children(node))
        if size > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES:,} values")
        known[id(node)] = size
    found = known[id(node)]
    if found is None:
        raise yaml.YAMLError("an alias holds itself")
    return found


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a key must be plain text")
            if key.value in seen:
                raise yaml.YAMLError(f"the key {shown(key.value)} is given twice in line {key.start_mark.line + 1}")
            seen.add(key.value)
            yield value
