"""Geometry of the regions: nearest points, uniform draws, steepest steps; and how a radius may be
written.
"""

from __future__ import annotations

import fractions
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust_ood import L1, L2, Linf, Unbounded
from robust_ood.errors import UserError
from robust_ood.randomness import generator, generators
from robust_ood.regions import NORMS, Fraction

SHAPE = (3, 2, 2)
SIZE = 12

radii = st.one_of(st.sampled_from([0.0, 8 / 255]), st.floats(0, 2))
kinds = st.sampled_from([Linf, L2, L1])


def build(kind, radius, clip=True):
    """An Linf radius above 1 is refused where pixels are clipped; there, it is the same as 1."""
    return kind(min(radius, 1) if kind is Linf and clip else radius, clip=clip)


def noise(count, seed, scale=1.0):
    draws = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, *SHAPE, generator=draws, dtype=torch.float64)


def clean(count, seed):
    return (noise(count, seed) * 0.6 + 0.5).clamp(0, 1)


def length(perturbation, kind):
    flat = perturbation.flatten(1)
    if kind is L1:
        return flat.abs().sum(1)
    return flat.abs().amax(1) if kind is Linf else flat.square().sum(1).sqrt()


@given(kinds, radii, st.booleans(), st.integers(0, 999), st.floats(0, 3))
def test_projection_is_inside_and_leaves_inside_points_alone(kind, radius, clip, seed, scale):
    region, center = build(kind, radius, clip), clean(3, seed)
    images = center + noise(3, seed + 1, scale)
    kept = images.clone()
    projected = region.project(images, center)
    assert torch.equal(images, kept)
    assert (length(projected - center, kind) <= radius + 1e-12).all()
    assert not clip or (projected.min() >= 0 and projected.max() <= 1)
    torch.testing.assert_close(region.project(projected, center), projected, rtol=0, atol=1e-12)
    near = center + (projected - center) * 0.9
    torch.testing.assert_close(region.project(near, center), near, rtol=0, atol=1e-12)


@given(kinds, radii, st.integers(0, 999))
def test_projection_onto_the_ball_is_the_nearest_point(kind, radius, seed):
    region, center = kind(radius, clip=False), clean(1, seed)
    image = center + noise(1, seed + 1)
    projected = region.project(image, center)
    others = region.sample(center.expand(50, *SHAPE), generator(seed))
    distance = (image - projected).norm()
    assert ((image - others).flatten(1).norm(dim=1) >= distance - 1e-12).all()
    mixed = projected + 0.01 * (others - projected)  # nor is any point close to it nearer
    assert ((image - mixed).flatten(1).norm(dim=1) >= distance - 1e-12).all()


@given(radii, st.integers(0, 999))
def test_linf_projection_with_the_pixel_range_is_the_nearest_point(radius, seed):
    center = clean(4, seed)
    images = center + noise(4, seed + 1)
    projected = build(Linf, radius).project(images, center)
    for image, middle, found in zip(
        images.flatten(), center.flatten(), projected.flatten(), strict=True
    ):
        low, high = max(middle.item() - radius, 0), min(middle.item() + radius, 1)
        assert found.item() == pytest.approx(min(max(image.item(), low), high), abs=1e-12)


@given(kinds, st.integers(0, 999), st.sampled_from([1e-44, 1e-30, 1e-5, 1.0, 1e5, 1e30]))
def test_steepest_step_has_unit_size_and_attains_the_dual_norm(kind, seed, scale):
    gradient = (noise(3, seed) * scale).float()
    step = kind(1.0).steepest(gradient)
    size = length(step.double(), kind)
    alive = (
        gradient.flatten(1).abs().amax(1) > 1e-38
    )  # below, float32 has too few digits left for a direction
    torch.testing.assert_close(size[alive], torch.ones_like(size[alive]), rtol=1e-5, atol=0)
    wide = gradient.double()
    gained = (step.double() * wide).flatten(1).sum(1)
    best = wide.flatten(1).norm(dim=1, p={Linf: 1, L2: 2, L1: math.inf}[kind])
    torch.testing.assert_close(gained[alive], best[alive], rtol=1e-5, atol=0)
    assert (size <= 1 + 1e-5).all()


@pytest.mark.parametrize(
    "region", [Linf(0.1), L2(0.1), L1(0.1), Unbounded()], ids=["Linf", "L2", "L1", "Unbounded"]
)
def test_no_gradient_is_no_step(region):
    assert torch.equal(region.steepest(torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE))


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_norm_equals_a_loop(kind):
    perturbation = noise(3, 0)
    expected = []
    for one in perturbation:
        values = [abs(value) for value in one.flatten().tolist()]
        norms = {
            Linf: max(values),
            L2: math.sqrt(sum(value**2 for value in values)),
            L1: sum(values),
        }
        expected.append(norms[kind])
    torch.testing.assert_close(
        kind(1.0).norm(perturbation), torch.tensor(expected, dtype=torch.float64)
    )


# ------------------------------------------------------------------------------------------------------------ sampling


def is_uniform(values):
    """Whether a Kolmogorov-Smirnov test finds nothing against values being uniform on [0, 1]."""
    return stats.kstest(values.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 1, 1), (3, 2, 2), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("per_image", [False, True], ids=["one generator", "one per image"])
def test_l2_draws_are_uniform_in_the_ball(shape, per_image):
    count, radius, size = 4000, 0.7, math.prod(shape)
    center = torch.full((count, *shape), 0.5, dtype=torch.float64)
    draws = generators(1, "start", indices=range(count)) if per_image else generator(1, "start")
    drawn = (L2(radius, clip=False).sample(center, draws) - center).flatten(1)  # (N, D)
    share = drawn.norm(dim=1) / radius
    assert share.max() <= 1 + 1e-6
    # E|x|^2 / r^2 = D / (D + 2); its standard error is below 1 / sqrt(N).
    assert share.square().mean().item() == pytest.approx(
        size / (size + 2), abs=4 * 0.5 / size**0.5 / count**0.5
    )
    assert is_uniform(share**size)  # the volume within |x| is uniform
    standard = drawn * ((size + 2) ** 0.5 / radius)  # covariance r^2 / (D + 2)
    assert standard.mean(0).abs().max() < 5 / count**0.5
    if size <= 12:
        torch.testing.assert_close(
            standard.T @ standard / count, torch.eye(size).double(), rtol=0, atol=5 / count**0.5
        )
    if size == 2:
        assert is_uniform(torch.atan2(drawn[:, 0], drawn[:, 1]) / (2 * math.pi) + 0.5)


@pytest.mark.parametrize("per_image", [False, True], ids=["one generator", "one per image"])
def test_linf_draws_are_uniform_in_the_cube(per_image):
    count, radius = 3000, 0.3
    center = torch.full((count, *SHAPE), 0.5, dtype=torch.float64)
    draws = generators(1, "start", indices=range(count)) if per_image else generator(1, "start")
    share = (
        (Linf(radius).sample(center, draws) - center).flatten(1) / radius + 1
    ) / 2  # (N, D) in [0, 1]
    assert is_uniform(share.flatten())
    standard = (share - 0.5) * 12**0.5
    torch.testing.assert_close(
        standard.T @ standard / count, torch.eye(SIZE).double(), rtol=0, atol=5 / count**0.5
    )


@settings(max_examples=50)
@given(kinds, radii, st.integers(0, 999), st.booleans())
def test_draws_are_inside_and_one_image_alone_draws_the_same(kind, radius, seed, single):
    region, center = build(kind, radius), clean(5, seed).float()
    indices = [7, 3, 900, 4, 0]
    batch = region.sample(center, generators(seed, "start", indices=indices))
    assert (length(batch - center, kind) <= radius + 1e-6).all()
    assert batch.min() >= 0
    assert batch.max() <= 1
    for place, index in enumerate(indices):
        alone = region.sample(center[place : place + 1], generators(seed, "start", indices=[index]))
        torch.testing.assert_close(alone[0], batch[place], rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_draws_differ_between_images_and_repeat_with_the_same_generators(kind):
    center = torch.full((3, *SHAPE), 0.5)
    first, second = (kind(0.1).sample(center, generators(0, indices=range(3))) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(kind(0.1).sample(center, generators(1, indices=range(3))), first)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_no_images_draw_nothing(kind):
    empty = torch.empty(0, *SHAPE)
    assert kind(0.1).sample(empty, generators(0, indices=[])).shape == (0, *SHAPE)
    assert kind(0.1).sample(empty, generator(0)).shape == (0, *SHAPE)


def test_an_unbounded_region_cannot_be_sampled():
    with pytest.raises(UserError, match="random_start"):
        Unbounded().sample(torch.zeros(1, *SHAPE), generator(0))


# -------------------------------------------------------------------------------------------------------------- radius


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8/255", 8 / 255),
        (0.5, 0.5),
        ("0.5", 0.5),
        (" 8 / 255 ", 8 / 255),
        ("1e-3", 1e-3),
        (0, 0.0),
        ("-1/4", -0.25),
    ],
)
def test_fractions(written, value):
    assert Fraction(written) == value
    assert isinstance(Fraction(written), float)


@given(st.integers(-(2**53), 2**53), st.integers(1, 2**53))
def test_fractions_round_as_the_standard_library_does(numerator, denominator):
    assert Fraction(f"{numerator}/{denominator}") == float(
        fractions.Fraction(numerator, denominator)
    )


@pytest.mark.parametrize("written", ["9" * 5000, f"{'9' * 5000}/{'9' * 5000}", "1e999999999"])
def test_numbers_of_very_many_digits_are_refused_at_once(written):
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"^radius: .* is not a finite number") as caught:
        Fraction(written)
    assert time.perf_counter() - started < 0.1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("written", [f"1/{'9' * 300}", "1e-999999999"])
def test_tiny_numbers_are_read_at_once(written):
    started = time.perf_counter()
    assert 0 <= Fraction(written) < 1e-299
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize(
    "written",
    [
        "8/0",
        "0/0",
        "1/2/3",
        "eight",
        "",
        "/",
        "8/",
        "/255",
        "nan",
        "inf",
        math.nan,
        -math.inf,
        None,
        [8],
    ],
)
@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_a_radius_that_is_no_number(kind, written):
    with pytest.raises(
        UserError, match=r"^radius: .* is not a finite number or a fraction such as 8/255"
    ) as caught:
        kind(written)
    assert repr(written) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", [-1, -1e-9, "-8/255"])
@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_a_negative_radius(kind, written):
    with pytest.raises(UserError, match=r"^radius: -.* is negative"):
        kind(written)


@pytest.mark.parametrize("radius", [0.1, math.nan])
def test_an_unbounded_region_takes_no_radius(radius):
    with pytest.raises(UserError, match=r"^radius: .* Unbounded"):
        Unbounded(radius)


def test_regions_are_equal_settings():
    assert Linf("8/255") == Linf(8 / 255)
    assert Linf(0.1) != L2(0.1)
    assert {"Linf": Linf, "L2": L2, "L1": L1} == NORMS


@given(kinds, radii, st.floats(0.1, 4), st.booleans())
def test_a_scaled_region_has_the_scaled_radius_or_the_whole_pixel_range(kind, radius, factor, clip):
    region = build(kind, radius, clip)
    wanted = factor * region.radius
    assert region.scaled(factor) == kind(
        min(wanted, 1) if kind is Linf and clip else wanted, clip=clip
    )
