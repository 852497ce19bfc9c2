"""Safe spots against closed forms of a linear classifier, and their independence of batch and
modes.
"""

import pytest
import torch
from torch import nn

from robust_ood import losses, safe_spots
from robust_ood.errors import UserError
from robust_ood.safe_spots import Smoothing


class Linear(nn.Module):
    """Two logits `(w x, -w x)`: the safe spot is the farthest point along w, the attacker's the
    reverse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(3)))

    def forward(self, images):
        height = images.flatten(1) @ self.weight
        return torch.stack([height, -height], 1)


class Curved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 24), nn.Dropout(0.5), nn.Tanh(), nn.Linear(24, 4)
        )

    def forward(self, images):
        return self.body(8 * images)


@pytest.fixture
def images():
    return 0.3 + 0.4 * torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["fgsm", "pgd", "full"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_linear_classifiers_safe_spot_is_its_farthest_point(images, method, norm):
    net, radius = Linear(), 0.1
    found = safe_spots.search(
        net,
        images,
        radius,
        norm,
        method,
        step_size=0.01 if (method, norm) == ("full", "L2") else None,
    )
    weight = net.weight.detach().view(3, 2, 2)
    side = torch.where(net(images).argmax(1) == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    direction = weight.sign() if norm == "Linf" else weight / weight.norm()
    gain = ((found - images) * side * weight).sum((1, 2, 3))
    best = (radius * direction * weight).sum()
    if (method, norm) == (
        "full",
        "L2",
    ):  # RMSprop evens out the pixels' gradients: the farthest point along their signs
        best = radius * weight.abs().sum() / weight.numel() ** 0.5
    assert (gain <= best * (1 + 1e-4)).all()
    assert (gain >= 0.97 * best).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_attack_reaches_a_linear_classifiers_worst_point(images, norm):
    net, labels = Linear(), torch.tensor([0, 1, 0, 1, 0])
    found = safe_spots.attack(net, images, labels, 0.1, norm)
    weight = net.weight.detach().view(3, 2, 2)
    direction = weight.sign() if norm == "Linf" else weight / weight.norm()
    expected = images - 0.1 * direction * (1 - 2.0 * labels).view(-1, 1, 1, 1)
    assert torch.allclose(found, expected, atol=3e-3 if norm == "L2" else 1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_full_search_withstands_the_attack_better_than_the_image(images, norm):
    net, radius = Curved().eval(), {"Linf": 0.05, "L2": 0.15}[norm]
    labels = net(images).argmax(1)
    safe = safe_spots.search(net, images, radius, norm, "full", steps=40)

    def loss_after_attack(start):
        return losses.cross_entropy(
            net(safe_spots.attack(net, start, labels, radius, norm, seed=1)), labels
        )

    assert (loss_after_attack(safe) < loss_after_attack(images)).all()
    size = (safe - images).flatten(1)
    assert (size.abs().amax(1) if norm == "Linf" else size.norm(dim=1)).max() <= radius + 1e-6
    assert safe.min() >= 0
    assert safe.max() <= 1


def test_edges_of_the_pixel_range_stay_inside_it():
    images = torch.tensor([0.0, 1.0, 0.0, 1.0] * 3).view(1, 3, 2, 2)
    safe = safe_spots.search(Curved(), images, 0.1, "Linf", "full", steps=5)
    assert safe.isfinite().all()
    assert safe.min() >= 0
    assert safe.max() <= 1
    assert not torch.equal(safe, images)


def test_no_radius_gives_the_image_back(images):
    assert torch.allclose(safe_spots.search(Curved(), images, 0, "Linf", "full", steps=3), images)


@pytest.mark.parametrize("smoothing", [None, Smoothing(0.1, 3)])
def test_the_result_of_an_image_does_not_depend_on_its_batch(images, smoothing):
    net = Curved()
    together = safe_spots.search(net, images, 0.05, steps=4, smoothing=smoothing)
    alone = torch.cat(
        [
            safe_spots.search(net, image[None], 0.05, steps=4, smoothing=smoothing)
            for image in images
        ]
    )
    assert torch.allclose(together, alone, atol=1e-5)


def test_smoothed_loss_is_the_cross_entropy_of_the_mean_softmax(images):
    net, labels = Curved().eval(), torch.tensor([0, 1, 2, 3, 0])
    loss = safe_spots._Loss(net, labels, Smoothing(0.1, 2000), seed=0, indices=None)
    noise = 0.1 * torch.randn(2000, 3, 2, 2, generator=torch.Generator().manual_seed(9))
    mean = torch.stack([net(image + noise).softmax(1).mean(0) for image in images])
    expected = -mean[range(5), labels].log()
    assert torch.allclose(loss(images), expected, atol=0.03, rtol=0.03)
    assert not torch.equal(loss(images), loss(images))  # fresh noise


def test_flags_and_gradients_are_left_alone(images):
    net = Curved().train()
    with torch.inference_mode():
        safe_spots.search(net, images, 0.05, steps=2)
    assert all(part.training for part in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "L7"}, "norm: unknown name 'L7'"),
        ({"method": "ful"}, "did you mean 'full'"),
        ({"attacks": 0}, "attacks: 0"),
    ],
)
def test_mistakes_are_named(images, wrong, message):
    with pytest.raises(UserError, match=message):
        safe_spots.search(Curved(), images, 0.1, **wrong)
