"""State the facts about data sets that are known before any image is read, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class SetShape(NamedTuple):
    """The shape of a data set.

    Attributes:
        train, test: the numbers of training and test images.
        channels: the number of channels.
        size: the height and width of the stored images in pixels.
        num_classes: the number of classes.
    """

    train: int
    test: int
    channels: int
    size: int
    num_classes: int


@dataclass(frozen=True)
class SourceFacts:
    """The facts about a data set that are known before any image is read.

    Attributes:
        epsilon: the customary budget of each norm, in pixel units of 1.0: of "linf" and "l2" for corruptions and
            defenses, of the others of `erat.options.NORMS`, in their own units, if there is one, for defenses.
        flip: whether a mirrored image still shows its class (true for photographs, false for digits).
        policy: the AutoAugment policy that suits the set ("cifar10", "svhn", "imagenet", "digits").
        similar: class k -> the class into which asymmetric noise turns it (an absent class does not change); None:
            k -> k + 1 mod K.
        fingerprint: the fingerprint of the content (`erat.data.fingerprint`) if that is the same everywhere; None: it
            must be computed.
        shape: the shape of the published set; None: it must be read from the data.
        classes: the names of the classes, in the order of their labels, where the files do not hold them; (): they do.
    """

    epsilon: dict[str, float]
    flip: bool
    policy: str
    similar: dict[int, int] | None = None
    fingerprint: str | None = None
    shape: SetShape | None = None
    classes: tuple[str, ...] = ()

    def budgets(self, image_size: int | None) -> dict[str, float]:
        """Return the customary budgets for images resized to this side in pixels; None: as they are stored.

        Those that add up over pixels go with the number of pixels: half the side, a quarter of l1 and l0. The distance
        of wasserstein goes with the side.
        """
        if image_size is None or self.shape is None:
            return self.epsilon
        share = (image_size / self.shape.size) ** 2
        scaled = {
            "l1": lambda size: size * share,
            "l0": lambda size: max(1, round(size * share)),
            "wasserstein": lambda size: size * share**0.5,
        }
        return {norm: scaled.get(norm, float)(size) for norm, size in self.epsilon.items()}


# Customary budgets for photographs; l1 is that of Croce, Hein, "Mind the box" (ICML 2021), l0 that of evaluations by
# sparse PGD, both on CIFAR-10; wasserstein that of Wu, Wang, Yu (ICML 2020) there; lpips that of
# Laidlaw, Singla, Feizi (ICLR 2021) there; for ssim nothing is customary: 0.05 is this project's choice.
PHOTOGRAPHS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 20, "ssim": 0.05, "wasserstein": 0.005, "lpips": 0.5}

# airplane 0, automobile 1, bird 2, cat 3, deer 4, dog 5, frog 6, horse 7, ship 8, truck 9
CIFAR10_SIMILAR = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}

CIFAR100_SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


def next_in_superclass(superclasses: dict[str, tuple[str, ...]]) -> dict[int, int]:
    """Return, for each fine class, the next one of its superclass, cyclically.

    The id of a fine class is the alphabetical rank of its name.
    """
    ids = {name: rank for rank, name in enumerate(sorted(name for names in superclasses.values() for name in names))}
    similar: dict[int, int] = {}
    for names in superclasses.values():
        members = sorted(ids[name] for name in names)
        similar.update(zip(members, members[1:] + members[:1], strict=True))
    return similar


# 8/255 is a budget for colour photographs; on grey drawings of 28 x 28 a comparable poison needs these larger ones.
DRAWINGS = {"linf": 0.1, "l2": 1.0, "l1": 10.0, "l0": 10, "ssim": 0.05, "wasserstein": 0.5, "lpips": 0.5}

MNIST = SourceFacts(
    epsilon=DRAWINGS,
    flip=False,
    policy="digits",
    similar={2: 7, 3: 8, 7: 1, 5: 6, 6: 5},
    fingerprint="441ab4947d60f4c0",
    shape=SetShape(4_000, 1_000, 1, 28, 10),
)
CIFAR10 = SourceFacts(PHOTOGRAPHS, True, "cifar10", CIFAR10_SIMILAR, shape=SetShape(50_000, 10_000, 3, 32, 10))
CIFAR100 = SourceFacts(
    PHOTOGRAPHS,
    True,
    "cifar10",
    next_in_superclass(CIFAR100_SUPERCLASSES),
    shape=SetShape(50_000, 10_000, 3, 32, 100),
)
TINY_IMAGENET = SourceFacts(PHOTOGRAPHS, True, "imagenet", shape=SetShape(100_000, 10_000, 3, 64, 200))
FOLDER = SourceFacts(PHOTOGRAPHS, True, "cifar10")

FASHION_MNIST = SourceFacts(
    DRAWINGS,
    flip=True,
    policy="digits",
    # Ankle boot -> sneaker -> sandal, pullover -> shirt, coat <-> dress: Zhang and Sabuncu, "Generalized Cross Entropy
    # Loss for Training Deep Neural Networks with Noisy Labels" (NeurIPS 2018), Sec. 4.
    similar={9: 7, 7: 5, 2: 6, 4: 3, 3: 4},
    shape=SetShape(60_000, 10_000, 1, 28, 10),
    classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KMNIST = SourceFacts(
    DRAWINGS,
    flip=False,
    policy="digits",
    shape=SetShape(60_000, 10_000, 1, 28, 10),
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
)
SVHN = SourceFacts(
    PHOTOGRAPHS,
    flip=False,
    policy="svhn",
    similar=MNIST.similar,
    shape=SetShape(73_257, 26_032, 3, 32, 10),
    classes=tuple("0123456789"),
)
STL10 = SourceFacts(
    PHOTOGRAPHS,
    flip=True,
    policy="cifar10",
    # CIFAR-10's changes between the classes that both sets have: truck -> car, bird -> airplane, deer -> horse,
    # cat <-> dog.
    similar={9: 2, 1: 0, 4: 6, 3: 5, 5: 3},
    shape=SetShape(5_000, 8_000, 3, 96, 10),
    classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
)
GTSRB = SourceFacts(
    PHOTOGRAPHS,
    flip=False,  # arrows point to a side
    policy="cifar10",
    shape=SetShape(26_640, 12_630, 3, 32, 43),
    classes=(
        *(f"speed limit {limit}" for limit in (20, 30, 50, 60, 70, 80)),
        "end of speed limit 80",
        "speed limit 100",
        "speed limit 120",
        "no overtaking",
        "no overtaking by lorries",
        "right of way at the next crossing",
        "priority road",
        "give way",
        "stop",
        "no vehicles",
        "no lorries",
        "no entry",
        "danger",
        "bend to the left",
        "bend to the right",
        "double bend",
        "uneven road",
        "slippery road",
        "road narrows",
        "road works",
        "traffic signals",
        "pedestrians",
        "children",
        "bicycles",
        "ice or snow",
        "wild animals",
        "end of all limits",
        "turn right ahead",
        "turn left ahead",
        "ahead only",
        "ahead or right",
        "ahead or left",
        "keep right",
        "keep left",
        "roundabout",
        "end of no overtaking",
        "end of no overtaking by lorries",
    ),
)
MEDMNIST = SourceFacts(PHOTOGRAPHS, flip=False, policy="cifar10")  # organs have a left and a right
