"""Tests every registered backbone: shapes, sizes against the literature, initial weights, normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erat.errors import UserError
from erat.models import Normalized, build_model
from erat.models.unet import UNet
from erat.models.vit import patch_size
from erat.registry import BACKBONES

HEAVY = {"wideresnet28_10", "vit_b16"}  # these take seconds each on one core if numbers are computed
REAL = [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in BACKBONES.names()]


def on_meta(name: str, num_classes: int = 10, channels: int = 3, image_size: int = 32) -> nn.Module:
    """Build the backbone without memory, so that shapes but no numbers are computed."""
    with torch.device("meta"):
        return BACKBONES[name](num_classes, channels, image_size)


def build(name: str, seed: int = 0, image_size: int = 28) -> nn.Module:
    return build_model(name, 10, 1, image_size, mean=[0.4], std=[0.25], seed=seed)


def batch(count: int, image_size: int = 28, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Make random images (count, C, size, size) in [0, 1] with labels 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(7)
    return torch.rand(count, channels, image_size, image_size, generator=generator), torch.arange(count) % 10


def final_map(name: str, image_size: int) -> int:
    """Return the height and width in pixels of the map that the last convolution returns."""
    network = on_meta(name, image_size=image_size)
    sides: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    network(torch.empty(2, 3, image_size, image_size, device="meta"))
    return sides[-1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [14, 28, 32, 64, 224])
@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_maps_images_to_one_logit_per_class(name: str, channels: int, image_size: int) -> None:
    network = on_meta(name, num_classes=7, channels=channels, image_size=image_size)
    images = torch.empty(2, channels, image_size, image_size, device="meta")
    assert network.train()(images).shape == network.eval()(images).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("medium", 0.30),
        ("resnet18", 11.17),
        ("resnet34", 21.28),
        ("resnet50", 23.52),
        ("preact_resnet18", 11.17),
        ("vgg11", 9.23),
        ("vgg16", 14.73),
        ("wideresnet28_10", 36.48),
    ],
)
def test_number_of_weights_is_the_documented_one_for_ten_classes_in_colour(name: str, millions: float) -> None:
    weights = sum(parameter.numel() for parameter in on_meta(name).parameters())
    assert weights / 1e6 == pytest.approx(millions, abs=0.005)


def test_number_of_weights_is_the_literature_s_for_vit_on_imagenet() -> None:
    network = on_meta("vit_b16", num_classes=1000, image_size=224)
    assert sum(parameter.numel() for parameter in network.parameters()) == 86_567_656


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("small", {14: 4, 28: 7, 32: 8, 64: 16}),
        ("medium", {14: 4, 28: 4, 32: 4, 64: 8}),
        ("resnet18", {14: 2, 28: 4, 32: 4, 64: 4, 224: 7}),
        ("preact_resnet18", {14: 2, 28: 4, 32: 4, 64: 4}),
        ("vgg16", {14: 1, 28: 2, 32: 2, 64: 4}),
        ("wideresnet28_10", {28: 7, 32: 8, 64: 8}),
    ],
)
def test_last_convolution_still_sees_a_map(name: str, sides: dict[int, int]) -> None:
    assert {image_size: final_map(name, image_size) for image_size in sides} == sides


def test_small_has_two_convolutions_of_stride_two() -> None:
    for image_size in (14, 28):
        modules = on_meta("small", image_size=image_size).modules()
        strides = [module.stride for module in modules if isinstance(module, nn.Conv2d)]
        assert sorted(strides) == [(1, 1), (1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize("name", BACKBONES.names())
def test_no_dropout_and_no_activation_in_place(name: str) -> None:
    for module in on_meta(name).modules():
        assert not (isinstance(module, nn.Dropout) and module.p > 0)
        assert not getattr(module, "inplace", False)


@pytest.mark.parametrize(("image_size", "patch"), [(14, 2), (28, 4), (32, 4), (64, 8), (96, 12), (224, 16), (384, 16)])
def test_vit_patch_follows_the_image_size(image_size: int, patch: int) -> None:
    assert patch_size(image_size) == patch


def test_vit_names_sizes_that_fit_when_one_does_not() -> None:
    with pytest.raises(UserError, match=r"got 37; .*28, 32, 64 and 224 fit"):
        patch_size(37)


@pytest.mark.parametrize("name", REAL)
def test_used_twice_in_one_loss_and_felt_by_images_and_weights(name: str) -> None:
    """A crafted batch and its clean twin go through one network before a single backward pass."""
    network, (images, labels) = build(name), batch(4)
    images.requires_grad_()
    first = network(images)
    kept = first.detach().clone()
    second = network(images + 0.01)
    assert torch.equal(first, kept)
    (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert bool((images.grad.flatten(1).abs().sum(1) > 0).all())


@pytest.mark.parametrize("name", REAL)
def test_evaluation_treats_each_image_alone(name: str) -> None:
    network, (images, _) = build(name).eval(), batch(3)
    with torch.no_grad():
        together, alone = network(images), network(images[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "lr"), [("small", 0.3), ("resnet18", 0.02)])
def test_loss_falls_over_three_steps(name: str, lr: float) -> None:
    network, (images, labels) = build(name), batch(10)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["small", "resnet18", "vgg11"])
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = build(name, seed=5).state_dict()
    torch.manual_seed(2)
    second = build(name, seed=5).state_dict()
    other = build(name, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    build("small", seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_global_generator_is_left_alone_when_a_builder_fails() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(UserError):
        build("vit_b16", image_size=37)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_default_device_of_the_caller_does_not_matter() -> None:
    with torch.device("meta"):
        network = build("small", seed=5)
    expected = build("small", seed=5).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["small", "resnet18", "vgg11"])
def test_convolutions_start_with_the_variance_that_suits_relu(name: str) -> None:
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)


def test_unknown_name_lists_near_matches() -> None:
    with pytest.raises(UserError, match=r"unknown backbone 'resnet81': did you mean resnet18"):
        build("resnet81")


def test_gradient_is_in_pixel_units() -> None:
    """For a linear network the gradient with respect to pixels is weight / std, whatever the mean."""
    linear = nn.Linear(3 * 2 * 2, 1, bias=False)
    network = Normalized(nn.Sequential(nn.Flatten(), linear), mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.125])
    images, _ = batch(2, image_size=2, channels=3)
    images.requires_grad_()
    network(images).sum().backward()
    expected = linear.weight.detach().reshape(1, 3, 2, 2) / torch.tensor([0.5, 0.25, 0.125]).reshape(1, 3, 1, 1)
    assert images.grad is not None
    torch.testing.assert_close(images.grad, expected.expand(2, -1, -1, -1))


def test_normalised_images_are_what_the_network_sees() -> None:
    network = Normalized(nn.Identity(), mean=torch.tensor([0.5, 0.0]), std=(0.5, 2.0))
    seen = network(torch.ones(1, 2, 1, 1))
    assert seen.flatten().tolist() == [1.0, 0.5]
    assert network.mean.shape == network.std.shape == (1, 2, 1, 1)
    assert {"mean", "std"} <= set(network.state_dict())
    assert not list(network.parameters())


def test_normalisation_keeps_its_own_copy() -> None:
    mean = torch.tensor([0.5])
    network = Normalized(nn.Identity(), mean, std=[1.0])
    mean.zero_()
    assert network.mean.item() == 0.5


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], [0.0], "std must be positive"),
        ([0.5], [float("nan")], "std must be positive"),
        ([0.5, 0.5], [1.0], r"got shapes \(2,\), \(1,\)"),
        ([[0.5]], [[1.0]], r"got shapes \(1, 1\)"),
    ],
)
def test_unusable_normalisation_is_refused(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalized(nn.Identity(), mean, std)


def test_normalisation_must_fit_the_channels() -> None:
    with pytest.raises(ValueError, match=r"must hold 3 numbers .* got 1 and 1"):
        build_model("small", 10, 3, 28, mean=[0.5], std=[0.5], seed=0)


# --- the U-Net that makes perturbations ------------------------------------------------------------------------------


def unet(channels: int, width: int) -> UNet:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return UNet(channels, width)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [7, 14, 28, 32])
def test_unet_maps_images_to_values_of_their_shape_between_the_signs(
    image_size: int, channels: int, training: bool
) -> None:
    images, _ = batch(3, image_size, channels)
    values = unet(channels, 4).train(training)(images)
    assert values.shape == images.shape
    assert bool((values.abs() < 1).all())
    assert values.std() > 1e-5, "which differ from pixel to pixel"


def test_unet_has_the_published_widths() -> None:
    """The widths are 64-128-256-512, at the size of the image and halved three times, then the same on the way up."""
    with torch.device("meta"):
        network = UNet(3, 64)
    maps: list[tuple[int, int, int]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hook = lambda module, _, output: maps.append((module.in_channels, output.shape[1], output.shape[-1]))  # noqa: E731
            module.register_forward_hook(hook)
    network(torch.empty(2, 3, 32, 32, device="meta"))
    down = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16)]
    down += [(128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4)]
    up = [(768, 256, 8), (256, 256, 8), (384, 128, 16), (128, 128, 16), (192, 64, 32), (64, 64, 32)]
    assert maps == [*down, *up, (64, 3, 32)]


def test_unet_s_number_of_weights_stays() -> None:
    for channels, weights in ((3, 7_785_859), (1, 7_784_577)):
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in UNet(channels, 64).parameters()) == weights


def test_every_weight_of_the_unet_is_felt_by_its_values() -> None:
    network, (images, _) = unet(1, 4), batch(4, 14)
    network(images).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


def test_the_unet_of_l2c_s_authors_averages_interpolates_and_normalises_before_the_tanh() -> None:
    network, (images, _) = UNet(3, 4, official=True), batch(8, 14, 3)
    raw: list[torch.Tensor] = []
    network.last.register_forward_hook(lambda module, inputs, output: raw.append(output))
    values = network.train()(images)
    assert torch.equal(values, raw[0].tanh())
    torch.testing.assert_close(raw[0].mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw[0].var((0, 2, 3), correction=0), torch.ones(3), atol=1e-2, rtol=0)
    features = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    assert network._halved(features).item() == 2
    assert network._resized(features, torch.empty(1, 1, 3, 3))[0, 0, 1].tolist() == [1, 2, 3]
