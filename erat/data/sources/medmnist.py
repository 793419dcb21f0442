"""Read the sets of MedMNIST v2 with one label an image, each a .npz file.

Source: J. Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image
classification", 2023.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.datasets.utils import download_url  # type: ignore[import-untyped,unused-ignore]

from erat.data import facts
from erat.data.bounded import npz_arrays
from erat.data.sources.published import damage, fetching, labels_below
from erat.data.types import ImageSet
from erat.errors import UserError

if TYPE_CHECKING:
    from erat.options import DataConfig

URL = "https://zenodo.org/records/10519652/files/{}?download=1"
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

_ORGANS = (
    *("bladder", "left femur", "right femur", "heart", "left kidney", "right kidney"),
    *("liver", "left lung", "right lung", "pancreas", "spleen"),
)

# The published checksum (MD5) of the files of 28x28 pixels, and the names of the classes.
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pathmnist": (
        "a8b06965200029087d5bd730944a56c1",
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
            *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
        ),
    ),
    "dermamnist": (
        "0744692d530f8e62ec473284d019b0c7",
        (
            *("actinic keratoses", "basal cell carcinoma", "benign keratosis", "dermatofibroma"),
            *("melanoma", "melanocytic nevi", "vascular lesions"),
        ),
    ),
    "octmnist": (
        "c68d92d5b585d8d81f7112f81e2d0842",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    "pneumoniamnist": ("28209eda62fecd6e6a2d98b1501bb15f", ("normal", "pneumonia")),
    "retinamnist": ("bd4c0672f1bba3e3a89f0e4e876791e4", tuple(f"grade {grade}" for grade in range(5))),
    "breastmnist": ("750601b1f35ba3300ea97c75c52ff8f6", ("malignant", "normal or benign")),
    "bloodmnist": (
        "7053d0359d879ad8a5505303e11de1dc",
        (
            *("basophil", "eosinophil", "erythroblast", "immature granulocyte"),
            *("lymphocyte", "monocyte", "neutrophil", "platelet"),
        ),
    ),
    "tissuemnist": (
        "ebe78ee8b05294063de985d821c1c34b",
        (
            *("collecting duct, connecting tubule", "distal convoluted tubule", "glomerular endothelial cell"),
            *("interstitial endothelial cell", "leukocyte", "podocyte"),
            *("proximal tubule segment", "thick ascending limb"),
        ),
    ),
    "organamnist": ("68e3f8846a6bd62f0c9bf841c0d9eacc", _ORGANS),
    "organcmnist": ("b9ceb9546e10131b32923c5bbeaea2b1", _ORGANS),
    "organsmnist": ("9ab87b696fb54e2a387ebe992d6ed5f1", _ORGANS),
}


class MedMnist:
    """One file of MedMNIST, grey or in colour, of 28x28 pixels or the larger forms.

    The published validation part is not used: the validation images of a run come from the training part, as for every
    other set.
    """

    facts = facts.MEDMNIST
    title = "MedMNIST"

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) from the file `config.root`; download it first if it is absent and `config.download`.

        Raises:
            UserError: the file is missing, damaged, too large or has several labels an image, or the download failed.
        """
        path = self._path(config)
        if config.download and not path.is_file():
            self._fetch(path)
        if not path.is_file():
            raise UserError(
                f"MedMNIST: {path.name} missing; put it into {path.parent}, or let data.download=true fetch it"
            )
        arrays, inside = npz_arrays(path, ARRAYS)
        missing = [name for name in ARRAYS if name not in arrays]
        if missing:
            raise UserError(f"{path} must have the arrays {', '.join(ARRAYS)}, got {', '.join(inside[:20]) or 'none'}")
        with damage(self.title, path.parent):
            labels = {part: _labels(arrays[f"{part}_labels"], path) for part in ("train", "test")}
            named = SETS.get(path.stem.partition("_")[0], ("", ()))[1]
            classes = named or tuple(map(str, range(int(labels["train"].max(initial=0)) + 1)))
            parts = {
                part: ImageSet(
                    _images(arrays[f"{part}_images"], path), labels_below(found, len(classes), path), classes
                )
                for part, found in labels.items()
            }
        return parts["train"], parts["test"]

    def files(self, config: DataConfig) -> list[Path]:
        """Return the file if it exists."""
        return [path] if config.root is not None and (path := self._path(config)).is_file() else []

    def _path(self, config: DataConfig) -> Path:
        if config.root is None:
            raise UserError(
                f"MedMNIST: data.root must name one of its files, such as FOLDER/{next(iter(SETS))}.npz; got none"
            )
        return Path(config.root).expanduser()

    def _fetch(self, path: Path) -> None:
        if path.stem not in SETS or path.suffix != ".npz":
            names = ", ".join(f"{name}.npz" for name in SETS)
            raise UserError(f"MedMNIST: data.download=true can fetch {names}; got data.root={path}")
        with fetching(self.title, path.parent):
            download_url(URL.format(path.name), str(path.parent), path.name, SETS[path.stem][0])


def _images(pixels: NDArray[Any], path: Path) -> torch.Tensor:
    """Return uint8 (N, C, H, W) from (N, H, W) or (N, H, W, 3)."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] == 3)):
        raise UserError(f"{path}: images must be uint8 (N, H, W) or (N, H, W, 3), got {pixels.dtype} {pixels.shape}")
    channels_last = pixels[..., None] if pixels.ndim == 3 else pixels
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2)))


def _labels(labels: NDArray[Any], path: Path) -> NDArray[np.integer]:
    """Return (N,) from (N, 1) or (N,)."""
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != 1):
        raise UserError(
            f"{path}: every image must have one whole number as its label, got {labels.dtype} {labels.shape}"
        )
    return labels.reshape(-1)


SOURCE = MedMnist()
