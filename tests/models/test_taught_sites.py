"""Sites of shared latents that an encoder is taught: how sure they should be, and when they give way."""

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.fourier import TimePrior
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.networks import ModesEncoder
from consilience.blocks.trajectories import Sites, infer_trajectories
from consilience.data.observations import Modality, Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.models.bins import DeepBins, trajectory_sites
from consilience.models.taught import TAIL, TaughtSites, heard

ROWS, BINS, LENGTH = 200, 30, 6.0


@pytest.fixture
def prior():
    return TimePrior(
        ["rbf"], BINS, length=torch.tensor([LENGTH]), shortest=2.0, longest=12.0, variance=torch.tensor([1.0])
    ).double()


def infer(prior):
    return lambda sites: infer_trajectories(prior.root().detach(), sites)


def taught(mean, precision, log_weight=None, before=None):
    """Sites of all latents with the modes (B, T, modes, Q), or with one, (B, T, Q)."""
    if log_weight is None:
        mean, precision = mean[..., None, :], precision[..., None, :]
        log_weight = torch.zeros_like(mean[..., 0])
    latents = mean.shape[-1]
    before = mean.new_ones(BINS, latents) if before is None else before
    return TaughtSites(mean, precision, log_weight, before, torch.arange(latents), latents)


def bins_of(sites):
    """One cell by bin, whose sites are these."""
    value = sites.mean.new_zeros(sites.mean.shape[0] * sites.mean.shape[1], 1)
    part = Modality(value, torch.zeros_like(value), torch.zeros_like(value, dtype=torch.uint8))
    return DeepBins(Gaussian(1), part, len(sites.mean), None, None, sites, sites.columns, sites.latents)


def trajectories(prior, seed):
    root = prior.root()[0].detach()
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(ROWS, root.shape[1], generator=generator, dtype=torch.float64) @ root.mT)[..., None]


@torch.no_grad()
@pytest.mark.parametrize("persistent", [True, False])
def test_the_lesson_is_best_where_the_whole_trial_is_as_sure_as_right(prior, persistent):
    """Errors alike in all bins of a trial, or independent: of both, the least lesson gives intervals that cover."""
    z = trajectories(prior, 0)
    generator = torch.Generator().manual_seed(1)
    error = 0.6 * torch.randn(ROWS, 1 if persistent else BINS, 1, generator=generator, dtype=torch.float64)
    mean = (z + error).expand_as(z)
    knows = infer(prior)(Sites(1e4 * z, torch.full((*z.shape, 1), 1e4, dtype=z.dtype)))
    before = prior.root().square().sum(-1).mT
    grid = torch.logspace(-3, 2, 41, dtype=z.dtype)
    says = heard(knows, before, torch.tensor([0]))
    score = torch.stack([taught(mean, p.expand_as(mean)).surprise(says, infer(prior)).mean() for p in grid])
    best = grid[score.argmin()]
    alone = infer(prior)(Sites(best * mean, best.expand(*mean.shape, 1)))
    covered = ((alone.mean - z).abs() < alone.variance.sqrt()).double().mean()
    assert 0.6 < covered < 0.8
    # one by one the bins of both know as much; together, far from it
    assert (best < 0.7 / 0.36) == persistent
    by_bin = infer(prior)(Sites(mean / 0.36, torch.full((*mean.shape, 1), 1 / 0.36, dtype=z.dtype)))
    if persistent:
        assert ((by_bin.mean - z).abs() < by_bin.variance.sqrt()).double().mean() < 0.45


def test_who_says_nothing_teaches_nothing(prior):
    mean = trajectories(prior, 2)[:3].requires_grad_()
    precision = torch.ones_like(mean)
    nothing = Sites(torch.zeros_like(mean), torch.zeros(*mean.shape, 1, dtype=mean.dtype))
    something = Sites(nothing.shift, nothing.precision + 1.0)
    before = prior.root().detach().square().sum(-1).mT
    slopes = []
    for sites in (nothing, something):
        lesson = taught(mean, precision).lesson(heard(infer(prior)(sites), before, torch.tensor([0])), infer(prior))
        slopes.append(torch.autograd.grad(lesson.sum(), mean)[0].abs().max())
    assert slopes[0] < 0.05 * slopes[1]


class Others:
    """Cells of which the sites are known."""

    moves = False

    def __init__(self, sites):
        self.sites = sites

    def given(self):
        return self.sites


@torch.no_grad()
def test_a_taught_site_gives_way_where_others_disagree(prior):
    """And not where they agree: the angle of a digit and its opposite look alike."""
    z = trajectories(prior, 3)[:4]
    precision = torch.full_like(z, 25.0)
    others = Sites(25.0 * z, torch.full((*z.shape, 1), 25.0, dtype=z.dtype))

    for shift, largest in ((0.0, 0.15), (3.0, 0.5)):
        told = bins_of(taught(z + shift, precision))
        parts = trajectory_sites([told, Others(others)], infer(prior), steps=20)
        q = infer(prior)(parts[0] + parts[1])
        assert (q.mean - z).abs().max() < largest
        miss = 25.0 * ((q.mean - z - shift).square() + q.variance)
        expected = torch.where(miss < 1, 25.0, 25.0 * (TAIL + 1) / (TAIL + miss))
        torch.testing.assert_close(parts[0].precision[..., 0], expected, rtol=1e-3, atol=1e-3)
        if shift:
            gaussian = infer(prior)(Sites(25.0 * (2 * z + shift), 2 * others.precision))
            assert (gaussian.mean - z).abs().min() > 1.0


class Told(torch.nn.Module):
    """An encoder that says what it is told to."""

    def __init__(self, mean, precision):
        super().__init__()
        self.mean, self.precision = mean, precision

    def forward(self, value, seen):
        mean = self.mean[..., None, :]
        return mean, torch.full_like(mean, self.precision), torch.zeros_like(mean[..., 0])


@torch.no_grad()
@pytest.mark.parametrize(("error", "tempered"), [(0.0, False), (0.6, True)])
def test_encoders_are_tempered_where_held_out_trials_say_so(prior, error, tempered):
    z = trajectories(prior, 4)[:40]
    generator = torch.Generator().manual_seed(5)
    loadings = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    signal = z @ loadings.mT
    calcium = signal + 0.2 * torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    specs = (
        ModalitySpec(name="calcium", shape=(BINS, 20), scale="none"),
        ModalitySpec(name="picture", shape=(BINS, 2), scale="none"),
    )
    obs = Observations.from_arrays(
        Schema(modalities=specs), {"calcium": calcium.numpy(), "picture": np.zeros((len(z), BINS, 2))}
    )
    family = cs.GPVAE(shared=1, decoders={"picture": "deep"}, length=LENGTH, hidden=4)
    model = family.build(obs.schema, len(obs), 0).double().eval()
    model.weights["calcium"].copy_(loadings)
    model.likelihoods["calcium"].log_noise.fill_(2 * np.log(0.2))
    wrong = error * torch.randn(len(z), 1, 1, generator=generator, dtype=torch.float64)
    # without an error its precisions are right; with one, that lasts for a trial, they are too large by far
    noise = 0.5 * torch.randn(z.shape, generator=generator, dtype=torch.float64)
    model.pupils["picture"] = Told(z + noise + wrong, 4.0)
    batch = Scaler.fit(obs).forward(obs).to(dtype=torch.float64)
    before = model.condition(batch).latent()["shared"].std
    alone = model.cells("picture", batch.parts["picture"]).taught.precision
    model.settle(batch)
    after = model.cells("picture", batch.parts["picture"]).taught.precision
    assert bool(model.temper[1, 0] < 0.3) == tempered
    assert bool(model.temper[1, 0] > 0.6) != tempered
    torch.testing.assert_close(after, alone * model.temper[1, 0])
    assert bool((model.temper[0] == 1).all())
    if tempered:
        assert (model.condition(batch).latent()["shared"].std > before).all()


@torch.no_grad()
def test_what_others_know_of_a_sum_of_latents_counts():
    """Of two latents one modality sees the sum: neither is known by itself, and an encoder of both can be judged."""
    generator = torch.Generator().manual_seed(6)
    prior = TimePrior(
        ["rbf"] * 2,
        BINS,
        length=torch.tensor([LENGTH, LENGTH]),
        shortest=2.0,
        longest=12.0,
        variance=torch.tensor([1.0, 2.0]),
    ).double()
    root = prior.root().detach()
    z = torch.stack(
        [torch.randn(40, root.shape[2], generator=generator, dtype=torch.float64) @ root[k].mT for k in range(2)], -1
    )
    axis = torch.tensor([1.0, 1.0], dtype=torch.float64)
    precise = 1e3 * torch.outer(axis, axis).expand(*z.shape, 2)
    others = infer(prior)(Sites((precise @ z[..., None])[..., 0], precise))
    before = prior.marginals()
    precision = torch.full_like(z, 16.0)

    def judged(error):
        told = taught(z + error, precision)
        return told.covered(heard(others, before, torch.arange(2)), infer(prior)(told.sites()))

    noise = 0.25 * torch.randn(z.shape, generator=generator, dtype=torch.float64)
    lasting = torch.randn(len(z), 1, 1, generator=generator, dtype=torch.float64)
    opposite = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert 0.6 < judged(noise) < 0.76
    assert judged(noise + lasting * axis) < 0.3  # wrong in what the others see
    assert judged(noise + 0.2 * lasting * opposite) > 0.5  # and in what they do not


TURN = 5.5  # between two modes, in standard deviations of the prior: a whole turn of the simulated digits


def circle(prior, seed, turn=TURN):
    """Latents, and sites with a mode at each and another a turn away, towards zero: both look alike."""
    z = trajectories(prior, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    seen = z + 0.1 * torch.randn(z.shape, generator=generator, dtype=z.dtype)
    mean = torch.stack([seen, seen - turn * seen.sign()], -2)
    log_weight = torch.full_like(mean[..., 0], -np.log(2.0))
    return z, taught(mean, torch.full_like(mean, 100.0), log_weight)


@torch.no_grad()
def test_a_site_makes_of_its_cavity_the_moments_of_the_mixture(prior):
    z, sites = circle(prior, 0, turn=1.5)
    q = infer(prior)(Sites(0.5 * z, torch.full((*z.shape, 1), 0.5, dtype=z.dtype)))
    weighed = sites.weighed(q)
    center, spread = weighed.cavity
    at, precision = weighed.moments
    # what q says without the site that it was given: none of these had a site when q was made
    grid = torch.linspace(-8, 8, 20001, dtype=z.dtype)
    some = (slice(0, 5), slice(0, None, 7))

    def log_normal(mean, variance):
        return -0.5 * ((grid - mean[..., None]).square() / variance[..., None] + variance[..., None].log())

    modes = log_normal(sites.mean[..., 0][some], sites.variance[..., 0][some])
    density = torch.softmax(log_normal(center[..., 0][some], spread[..., 0][some]) + modes.logsumexp(-2), -1)
    mean = (density * grid).sum(-1)
    variance = (density * (grid - mean[..., None]).square()).sum(-1)
    total = precision[..., 0][some] + 1 / spread[..., 0][some]
    narrower = precision[..., 0][some] > 0
    assert narrower.double().mean() > 0.5
    torch.testing.assert_close((1 / total)[narrower], variance[narrower], rtol=1e-4, atol=1e-6)
    found = (precision[..., 0][some] * at[..., 0][some] + (center / spread)[..., 0][some]) / total
    torch.testing.assert_close(found[narrower], mean[narrower], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_cavity_is_what_all_others_say(prior):
    z, sites = circle(prior, 3)
    others = Sites(2.0 * z, torch.full((*z.shape, 1), 2.0, dtype=z.dtype))
    own = sites.sites()
    center, spread = sites.weighed(infer(prior)(others + own)).cavity
    for bin_ in (0, 11):
        shift, precision = own.shift.clone(), own.precision.clone()
        shift[:, bin_], precision[:, bin_] = 0.0, 0.0
        without = infer(prior)(others + Sites(shift, precision))
        torch.testing.assert_close(center[:, bin_], without.mean[:, bin_], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(spread[:, bin_], without.variance[:, bin_], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_of_two_modes_that_is_taken_which_the_trial_agrees_with(prior):
    """Where one bin leaves open which of two latents it shows, its neighbours tell; the likelier would be wrong."""
    z, sites = circle(prior, 7)
    (parts,) = trajectory_sites([bins_of(sites)], infer(prior), steps=20)
    q = infer(prior)(parts)
    likelier = sites.mean.abs().argmin(-2)[..., None]
    one = taught(sites.mean.gather(2, likelier)[:, :, 0], sites.precision[:, :, 0])
    alone = infer(prior)(trajectory_sites([bins_of(one)], infer(prior), steps=20)[0])
    turned = likelier[..., 0, :] == 1
    assert 0.003 < turned.double().mean() < 0.03
    assert (q.mean - z).square().mean() < 0.1 * (alone.mean - z).square().mean()
    assert (q.mean - z).abs()[turned].max() < 0.5 < (alone.mean - z).abs()[turned].max()
    assert ((q.mean - z).abs() < q.variance.sqrt()).double().mean() > 0.6


@torch.no_grad()
def test_modes_that_nothing_tells_apart_leave_a_bin_open(prior):
    mean = torch.tensor([[2.0], [-2.0]], dtype=torch.float64).expand(1, BINS, 2, 1)
    sites = taught(mean, torch.full_like(mean, 100.0), torch.full((1, BINS, 2), -np.log(2.0), dtype=torch.float64))
    q = infer(prior)(trajectory_sites([bins_of(sites)], infer(prior), steps=20)[0])
    assert q.mean.abs().max() < 1e-6
    torch.testing.assert_close(q.variance, torch.ones_like(q.variance), rtol=0.05, atol=0)


def test_modes_learn_what_each_of_them_means(prior):
    """From pictures that show a latent up to a turn: where two are likely, means at both."""
    generator = torch.Generator().manual_seed(8)
    torch.manual_seed(8)
    turn, steps = 4.0, 500
    z = trajectories(prior, 9)

    def picture(z):
        return torch.cat([(2 * np.pi * z / turn).cos(), (2 * np.pi * z / turn).sin()], -1)

    def read(z):
        return TaughtSites(*encoder(picture(z), torch.ones(*z.shape[:2], 2).bool()), before, torch.tensor([0]), 1)

    encoder = ModesEncoder(2, 1, 32, modes=2).double()
    optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    sure = Sites(1e3 * z, torch.full((*z.shape, 1), 1e3, dtype=z.dtype))
    before = prior.marginals().detach()
    for _ in range(steps):
        rows = torch.randint(0, 150, (20,), generator=generator)
        says = heard(infer(prior)(Sites(sure.shift[rows], sure.precision[rows])), before, torch.tensor([0]))
        optimiser.zero_grad()
        read(z[rows]).lesson(says, infer(prior)).mean().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        grid = torch.linspace(-2.2, 2.2, 45, dtype=z.dtype)[None, :, None]
        found = read(grid)
        away = (found.mean - grid[..., None]).abs().amin(-2)[0, :, 0]
        assert away.median() < 0.05
        assert away.quantile(0.9) < 0.5  # between one turn and the next the network is steep
        certain = grid[0, :, 0].abs() < 1
        mean = (found.log_weight.exp()[..., None] * found.mean).sum(-2)
        assert (mean - grid)[0, certain].abs().max() < 0.3
        held = z[150:]
        (parts,) = trajectory_sites([bins_of(read(held))], infer(prior), steps=20)
        wrong = (infer(prior)(parts).mean - held).abs()
        assert wrong.median() < 0.1
