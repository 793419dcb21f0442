"""One frozen, validated run configuration, addressed by dotted keys, identified by a digest.

`build("demo", {"defense.eta": 0.3})` is the only entry point: it applies the overrides to a preset, fills in the values
that follow from the data set (budgets, policy, flips), and refuses unknown keys and invalid values with a one-line
error.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError, field_validator, model_validator

from erat.data.facts import SetShape
from erat.defaults import corruption_options, fill_coupling, fill_images, fill_labels
from erat.errors import UserError, shown, unknown_name
from erat.keys import has_key, known_keys, unknown_key
from erat.options import CorruptionOptions, DefenseOptions, Norm, Section, Setting, fields_of, norms_in, parse_fraction
from erat.presets import PRESETS
from erat.registry import BACKBONES, DATASETS, DEFENSES
from erat.sections import Sections, TrainConfig
from erat.variants import expand

S = TypeVar("S", bound=Section)


# Settings of paths and machines, and of what is kept on the way: the same experiment in another place has the same
# identity.
_NOT_IDENTITY = (
    "data.root",
    "data.download",
    "corruption.source_weights",
    "corruption.labels_file",
    "resources.",
    "storage.",
    "train.checkpoint_every",
    "preset",
)


# Alternative name of a key -> the key.
_ALSO = {"train.gpus_per_worker": "resources.gpu"}


class RunConfig(Sections):
    """The complete configuration of one run."""

    @field_validator("corruption", mode="before")
    @classmethod
    def _options_of_the_named_corruption(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _validated(corruption_options(str(value.get("data", "none"))), value, "corruption")
        return value

    @field_validator("defense", mode="before")
    @classmethod
    def _options_of_the_named_defense(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _options(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_from_data_set(cls, raw: Any) -> Any:
        return _filled(raw) if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _check_across_sections(self) -> RunConfig:
        for name in (self.model.name, *self.corruption.networks()):
            BACKBONES.require(name)
        if self.corruption.norm == "linf" and (self.corruption.epsilon or 0) > 1:
            raise UserError(f"corruption.epsilon must be in [0, 1] for linf, got {self.corruption.epsilon:g}")
        self.corruption.check_coupling()
        self._check_parts()
        self._check_gpus()
        if self.train.cuda_graphs and not self.train.compile:
            raise UserError("train.cuda_graphs needs train.compile=true, got false")
        if self.train.compile and "lpips" in norms_in(getattr(self.defense, "norms", None) or ""):
            raise UserError("defense.norms with lpips needs train.compile=false, got true: it looks inside the network")
        if self.train.compile and self.train.checkpoint_activations:
            raise UserError("train.checkpoint_activations needs train.compile=false, got true")
        self.defense.check(self.train.workers * self.train.accumulate)
        shape = DATASETS.facts(self.data.name).shape
        side = self.data.image_size or (shape.size if shape else None)
        if side is not None:  # otherwise the size is known when the images are read
            self.defense.check_image(side**2)
            self.corruption.check_image(side**2)
        return self

    def _check_parts(self) -> None:
        """Check that a batch divides evenly among every possible number of workers.

        Raises:
            UserError: it does not, or `resources.min_workers` exceeds `train.workers`.
        """
        train, fewest = self.train, self.resources.min_workers or self.train.workers
        if train.batch_size % (train.workers * train.accumulate):
            times = f" times train.accumulate ({train.accumulate})" if train.accumulate > 1 else ""
            raise UserError(
                f"train.batch_size must be a multiple of train.workers ({train.workers}){times}, got {train.batch_size}"
            )
        if fewest > train.workers:
            raise UserError(f"resources.min_workers must be at most train.workers ({train.workers}), got {fewest}")
        for workers in range(fewest, train.workers):
            if train.batch_size % (workers * train.accumulate):
                raise UserError(
                    f"train.batch_size must be a multiple of every number of workers from resources.min_workers to "
                    f"train.workers ({fewest} to {train.workers}), got {train.batch_size}"
                )

    def _check_gpus(self) -> None:
        """Check that Ray and NCCL can give each worker what it asks for.

        Raises:
            UserError: the workers of a trial would share a GPU, or a worker asks for several and a part of one.
        """
        gpu, workers = self.resources.gpu, self.train.workers
        if workers > 1 and 0 < gpu < 1:
            raise UserError(
                f"resources.gpu must be 0 or a whole number with train.workers={workers}, got {gpu:g}: "
                "workers of one trial cannot share a GPU"
            )
        if gpu > 1 and gpu % 1:
            raise UserError(f"resources.gpu must be a whole number or below 1, got {gpu:g}")

    def with_seed(self, seed: int) -> RunConfig:
        """Return the configuration of the same run with another training seed.

        Raises:
            UserError: `seed` is not a valid seed.
        """
        try:
            train = TrainConfig.model_validate(self.train.model_dump() | {"seed": seed})
        except ValidationError as error:
            raise UserError(first_error(error, "train")) from error
        return self.model_copy(update={"train": train})

    def flat(self) -> dict[str, Any]:
        """Return all dotted keys with their plain values, in a fixed order."""
        return _flatten(self.model_dump(mode="json"))

    def identity(self) -> dict[str, Any]:
        """Return the dotted keys and values that identify this run: all but paths, devices and the preset's name.

        Without `data.fingerprint` the identity is incomplete, and nothing is trained or recorded under it.
        """
        reference = DATASETS.facts(self.data.name).fingerprint
        later = {} if reference is None else {"data.fingerprint": reference}
        for name, section in (("corruption", self.corruption), ("defense", self.defense), ("train", self.train)):
            later |= {f"{name}.{key}": value for key, value in section.added.items()}
        return {
            key: value
            for key, value in self.flat().items()
            if (key.endswith("_digest") or not key.startswith(_NOT_IDENTITY)) and later.get(key, ...) != value
        }

    @property
    def identified(self) -> bool:
        """Return whether the fingerprint of the images (`erat.data.fingerprint`) is set, as every run requires."""
        return self.data.fingerprint is not None

    def digest(self) -> str:
        """Return the 16 hex digits that identify this run."""
        return content_digest(self.identity())


def content_digest(content: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a JSON-like value; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(preset: str = "demo", overrides: Mapping[str, Any] | None = None, *, quiet: bool = False) -> RunConfig:
    """Return the configuration of one run.

    Args:
        preset: the name of the preset whose values are the starting point ("demo", "medium", "paper", "official").
        overrides: dotted key -> value; strings are converted to the type of their field ("8/255" to a number).
        quiet: do not warn of keys that this run does not use, which may be meant for other runs of the same study.

    Raises:
        UserError: the preset, a key or a name is unknown, or a value is out of range; the message says what is wrong,
            what was given and what is allowed.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    overrides = expand({key: value for key, value in (overrides or {}).items() if key != "preset"})
    for also, key in _ALSO.items():
        if also in overrides:
            if key in overrides:
                raise UserError(f"{also} is another name for {key}; give one of them")
            overrides = {key if given == also else given: value for given, value in overrides.items()}
    values = PRESETS[preset](overrides) | overrides
    defense = str(values.get("defense.name", "erat"))
    # A preset has values for every defense; keys that the chosen one lacks are meant for others.
    mine = {key: value for key, value in values.items() if has_key(key, defense)}
    for key in overrides:
        if key not in mine:
            raise unknown_key(key, known_keys(defense))
    try:
        config = RunConfig.model_validate(_nest(mine | {"preset": preset}))
    except ValidationError as error:
        raise UserError(first_error(error)) from error
    except TypeError as error:  # for instance a list from YAML where a name is needed to look up a default
        raise UserError(f"a value is of the wrong kind: {error}") from error
    if not quiet:
        for key in _unused(config, overrides):
            warnings.warn(f"{key}={overrides[key]} is not used: {_corruption_words(config)}", stacklevel=2)
        if config.data.root is not None and DATASETS.facts(config.data.name).fingerprint is not None:
            warnings.warn(
                f"data.root={config.data.root} is not used: data.name={config.data.name} is the same everywhere; "
                f"data.name=folder reads images of one's own",
                stacklevel=2,
            )
    return config


def _unused(config: RunConfig, overrides: Mapping[str, Any]) -> list[str]:
    """Return the keys of the overrides that were dropped because the configured corruption does not use them."""
    none = {"corruption.share": config.corruption.data, "corruption.rate": config.corruption.labels}
    none |= {"corruption.coupling": "none", "corruption.labels": "none"}  # filled in from each other
    flat = config.flat()
    return [
        key
        for key, given in overrides.items()
        if key.startswith("corruption.")
        and given is not None
        and (flat.get(key) is None or (none.get(key) == "none" and parse_fraction(given) != flat[key]))
    ]


def _corruption_words(config: RunConfig) -> str:
    return f"corruption.data={config.corruption.data}, corruption.labels={config.corruption.labels}"


def load_config(path: str | Path) -> RunConfig:
    """Read a configuration that `model_dump_json` wrote, such as `config.json` of a run.

    Raises:
        UserError: the file cannot be read, or holds no configuration.
    """
    try:
        return RunConfig.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{shown(str(path), 300)} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{shown(str(path), 300)} holds no configuration: {first_error(error)}") from error


def _filled(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the keys whose default follows from the data set or the corruption."""
    values = {key: dict(part) if isinstance(part, Mapping) else part for key, part in raw.items()}
    if not all(isinstance(values.get(part, {}), dict) for part in ("data", "corruption")):
        return values  # the model says what is wrong
    facts = DATASETS.facts(str(values.get("data", {}).get("name", "cifar10")))
    data, corruption, defense = (values.setdefault(part, {}) for part in ("data", "corruption", "defense"))
    if data.get("flip") is None:
        data["flip"] = facts.flip
    if data.get("fingerprint") is None:
        data["fingerprint"] = facts.fingerprint
    setting = Setting(
        data=str(data.get("name", "cifar10")),
        epsilon=facts.budgets(_image_size(data)),
        policy=facts.policy,
        flip=bool(data["flip"]),
    )
    fill_coupling(corruption)
    fill_images(corruption, setting, _values(data, facts.shape))
    fill_labels(corruption)
    if isinstance(defense, dict):
        setting = replace(
            setting,
            norm=norm if (norm := corruption.get("norm")) in get_args(Norm) else None,
            labels=str(corruption.get("labels", "none")),
            rate=_rate(corruption),
        )
        values["defense"] = defense | _options(defense).fill(setting)
    return values


def _image_size(data: Mapping[str, Any]) -> int | None:
    """Return `data.image_size`; None where it is not given or no number, of which the model says what is wrong."""
    size = str(data.get("image_size"))
    return int(size) if size.isascii() and size.isdigit() and 0 < len(size) < 9 else None


def _values(data: Mapping[str, Any], shape: SetShape | None) -> int | None:
    """Return the number of values of an image, over all channels; None where it is known only from the images."""
    return None if shape is None else shape.channels * (_image_size(data) or shape.size) ** 2


def _rate(corruption: Mapping[str, Any]) -> float | None:
    """Return the share of wrong labels of the `corruption` section; None for human labels or what is no number."""
    rate = parse_fraction(corruption.get("rate", fields_of(CorruptionOptions)["rate"].default))
    try:
        return float(rate)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None  # the model says what is wrong


def _options(defense: Mapping[str, Any]) -> DefenseOptions:
    """Return the validated options of the named defense."""
    return _validated(DEFENSES.options(str(defense.get("name", "erat"))), defense, "defense")


def _validated(options: type[S], values: Mapping[str, Any], section: str) -> S:
    """Return the validated options of a part.

    The error message is composed here because inside a validator it would lose the section of the key.

    Raises:
        UserError: a value is invalid.
    """
    try:
        return options.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(first_error(error, section)) from error


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the dotted keys of a dictionary that holds plain values and sections of plain values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def first_error(error: ValidationError, section: str = "") -> str:
    """Return one line about the first problem of a validation error: the key, what is allowed and what was given.

    If the problem is a UserError, its own message is returned.

    Args:
        error: the validation error.
        section: the section that was validated, which becomes the first part of the key; "": the whole configuration.
    """
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, UserError):
        return str(inner)
    key = ".".join(str(part) for part in (*([section] if section else []), *first["loc"]))
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {shown(first['input'])}"
