"""Define the sections of a run's configuration: their keys, ranges and descriptions, but for those of its parts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SerializeAsAny, field_validator

from erat.errors import UserError, shown
from erat.options import (
    MOST_EPOCHS,
    MOST_WORKERS,
    SEEDS,
    CorruptionOptions,
    DataConfig,
    DefenseOptions,
    Epoch,
    Interval,
    Number,
    Section,
)
from erat.paths import user_path


class ValConfig(Section):
    """The validation part of the training images, by which samplers, pruners and schedulers may decide."""

    fraction: Number = Field(0.1, gt=0, lt=0.9, description="share of the training images that is held out")
    trusted: bool = Field(True, description="true: clean images and labels; false: corrupted like the rest")
    objective: Literal["clean", "perturbed"] = Field(
        "clean",
        description="val_accuracy on the images as they are, or attacked within the customary budgets of the set",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="decides which images are held out")


class ModelConfig(Section):
    """The network."""

    name: str = Field("resnet34", description="network (backbone)")


class TrainConfig(Section):
    """The optimisation, which is the same for every defense."""

    added: ClassVar[dict[str, Any]] = {"accumulate": 1, "lr_rule": "fixed", "lr_batch": 64}

    epochs: int = Field(100, ge=1, le=MOST_EPOCHS, description="passes over the training images")
    batch_size: int = Field(
        64, ge=2, le=2**20, description="labelled images of one step over all workers; unlabelled likewise"
    )
    accumulate: int = Field(
        1, ge=1, le=MOST_WORKERS, description="parts in which each worker takes its share of a batch, to save memory"
    )
    lr: Number = Field(0.05, gt=0, description="learning rate of SGD; of onecycle, its peak")
    lr_rule: Literal["fixed", "linear", "sqrt"] = Field(
        "fixed", description="lr for any batch, or times batch_size / lr_batch, or times the root of that"
    )
    lr_batch: int = Field(64, ge=1, le=2**20, description="batch size that lr is meant for, where lr_rule scales it")
    momentum: Number = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: Number = Field(5e-4, ge=0, description="weight of the l_2 penalty on all weights")
    schedule: Literal["step", "onecycle", "cosine"] = Field("step", description="how the learning rate changes")
    milestones: tuple[Epoch, ...] = Field(
        (60,), max_length=100, description="epochs at which the step schedule multiplies by gamma"
    )
    gamma: Number = Field(0.1, gt=0, le=1, description="factor of the step schedule at each milestone")
    seed: int = Field(0, ge=0, lt=SEEDS, description="decides initial weights, order of images, views and attacks")
    workers: int = Field(1, ge=1, le=MOST_WORKERS, description="data-parallel workers that share each batch")
    sync_batchnorm: bool = Field(True, description="with several workers: batch statistics of all of them together")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="tf32: float32 products of 10 bits on GPUs that have them; bf16: mixed precision (autocast)"
    )
    channels_last: bool = Field(False, description="memory format of images and weights; faster convolutions on GPUs")
    compile: bool = Field(False, description="torch.compile the networks: minutes to begin with, faster steps")
    cuda_graphs: bool = Field(False, description="with train.compile, on CUDA: launch a whole pass at once")
    checkpoint_activations: bool = Field(False, description="large networks: compute activations twice, store few")
    checkpoint_every: Interval = Field(
        "1",
        description="interval between two checkpoints: a number of epochs, or a time (90s, 10min, 2h) after which "
        "the next end of an epoch writes one",
    )


class ResourcesConfig(Section):
    """The resources that one worker may use. They are not part of a run's identity."""

    cpu: int = Field(1, ge=1, le=1024, description="cores, and threads of torch")
    gpu: Number = Field(
        0.0, ge=0, le=64, description="GPUs per worker on Ray, which sees no other; a fraction shares one"
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        le=MOST_WORKERS,
        description="data-parallel workers to go on with while fewer than train.workers fit; none: all",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where the worker sees such a device; cpu: asks Ray for no GPU"
    )


class StorageConfig(Section):
    """The place where the nodes of a cluster share files. It is not part of a run's identity."""

    path: str | None = Field(
        None, description="folder or URL (s3://, gs://, file://) that all nodes see; none: ERAT_HOME, seen by all"
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """Make a folder's path absolute, because workers run in other folders, and check a URL.

        Raises:
            UserError: the URL is malformed or names no bucket or host.
        """
        if not path:
            return None
        if "://" not in path:
            return str(user_path(path, "storage.path"))
        try:
            place = urlsplit(path)
        except ValueError as error:
            raise UserError(f"storage.path must be a folder or a URL, got {shown(path)}: {error}") from None
        if place.scheme != "file" and not place.netloc:
            raise UserError(f"storage.path must name a bucket or host behind {place.scheme}://, got {shown(path)}")
        return path


class Sections(Section):
    """All sections of a configuration, without the checks of one against another (`erat.config.RunConfig`)."""

    preset: str = "paper"
    data: DataConfig = DataConfig()
    val: ValConfig = ValConfig()
    corruption: SerializeAsAny[CorruptionOptions] = CorruptionOptions()
    model: ModelConfig = ModelConfig()
    defense: SerializeAsAny[DefenseOptions]
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()
    storage: StorageConfig = StorageConfig()
