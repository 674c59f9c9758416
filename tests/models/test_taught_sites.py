"""Sites of shared latents that an encoder is taught: how sure they should be, and when they give way."""

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.fourier import TimePrior
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.trajectories import Sites, infer_trajectories
from consilience.data.observations import Modality, Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.models.bins import TAIL, DeepBins, trajectory_sites

ROWS, BINS, LENGTH = 200, 30, 6.0


@pytest.fixture
def prior():
    return TimePrior(
        ["rbf"], BINS, length=torch.tensor([LENGTH]), shortest=2.0, longest=12.0, variance=torch.tensor([1.0])
    ).double()


def infer(prior):
    return lambda sites: infer_trajectories(prior.root().detach(), sites)


def bins_of(mean, precision):
    """One latent, one cell by bin, and an encoder that says what it is told to."""
    value = mean.reshape(-1, 1)
    part = Modality(value, torch.zeros_like(value), torch.zeros_like(value, dtype=torch.uint8))
    return DeepBins(
        Gaussian(1), part, len(mean), None, None, lambda *_: (mean, precision), torch.tensor([0]), latents=1, taught=1
    )


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
    score = torch.stack([bins_of(mean, p.expand_as(mean)).surprise(knows, before, infer(prior)).mean() for p in grid])
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
        lesson = bins_of(mean, precision).lesson(infer(prior)(sites), before, infer(prior))
        slopes.append(torch.autograd.grad(lesson.sum(), mean)[0].abs().max())
    assert slopes[0] < 0.05 * slopes[1]


@torch.no_grad()
def test_a_taught_site_gives_way_where_others_disagree(prior):
    """And not where they agree: the angle of a digit and its opposite look alike."""
    z = trajectories(prior, 3)[:4]
    precision = torch.full_like(z, 25.0)
    others = Sites(25.0 * z, torch.full((*z.shape, 1), 25.0, dtype=z.dtype))

    class Others:
        def given(self):
            return others

        def first(self):
            return None

    for shift, largest in ((0.0, 0.15), (3.0, 0.5)):
        told = bins_of(z + shift, precision)
        parts = trajectory_sites([told, Others()], infer(prior), steps=20)
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
        return self.mean, torch.full_like(self.mean, self.precision)


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
    alone = model.cells("picture", batch.parts["picture"]).learned[1]
    model.settle(batch)
    after = model.cells("picture", batch.parts["picture"]).learned[1]
    assert bool(model.temper[1] < 0.3) == tempered
    assert bool(model.temper[1] > 0.6) != tempered
    torch.testing.assert_close(after, alone * model.temper[1])
    assert model.temper[0] == 1
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
        mean = z + error
        value = mean.flatten(0, 1)
        part = Modality(value, torch.zeros_like(value), torch.zeros_like(value, dtype=torch.uint8))
        columns = torch.tensor([0, 1])
        return DeepBins(
            Gaussian(2), part, len(z), None, None, lambda *_: (mean, precision), columns, latents=2, taught=2
        ).covered(others, before, infer(prior))

    noise = 0.25 * torch.randn(z.shape, generator=generator, dtype=torch.float64)
    lasting = torch.randn(len(z), 1, 1, generator=generator, dtype=torch.float64)
    opposite = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert 0.6 < judged(noise) < 0.76
    assert judged(noise + lasting * axis) < 0.3  # wrong in what the others see
    assert judged(noise + 0.2 * lasting * opposite) > 0.5  # and in what they do not
