"""The shared GPLVM with linear kernels is factor analysis: its predictive of hidden cells has a closed form.

The model knows the truth only through the table, so two distances are told apart: to the closed form at the
maximum-likelihood parameters of the same table (what the optimisation leaves), and to the closed form of the truth
(that, and the sampling error of the table, which falls as 1/sqrt(N)).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.factors import fit_factors
from consilience.blocks.likelihood_base import known_variance
from consilience.data.masking import conceal
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.simulators import LinearGaussian, linear_gaussian

SIZES = {"x": 6, "y": 3}


def fitted(rows, posterior, **options):
    model = linear_gaussian(seed=0, latent_dim=2, sizes=SIZES)
    table = model.simulate(rows, seed=1, missing=0.2, sigma=0.2)
    hidden = model.simulate(300, seed=2, missing=0.2, sigma=0.2).hide("y")
    family = cs.SharedGPLVM(latent_dim=2, inducing=4, posterior=posterior, kernel="linear")
    config = cs.TrainConfig(batch_size=2000, validation=0, masking="none", **options)
    return model, table, hidden, cs.fit(family, table, config)


def predictive(fit, hidden):
    """Mean and standard deviation of every cell of y, in physical units, without the noise of the draws."""
    context = fit.scaler.forward(hidden).to(dtype=torch.float32)
    conditional = fit.members[0].fresh(context).condition(context)
    half = torch.randn(2000, 300, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # E f and Var f over q(z): antithetic draws make the mean of a linear function exact
        z = conditional.posterior.draw(torch.cat([half, -half]))
        mean, variance = conditional._moments("y", z)
        total = variance.mean(0) + mean.var(0) + fit.members[0].likelihoods["y"].learned()
    transform = fit.scaler.transforms["y"]
    centre = transform.location + transform.scale * mean.mean(0).double().numpy()
    return centre, transform.scale * total.double().sqrt().numpy()


def maximum_likelihood(fit, table):
    """The linear-Gaussian model of largest likelihood for this table, in physical units."""
    scaled = fit.scaler.forward(table).to(dtype=torch.float64)
    parts = [scaled.parts[name] for name in SIZES]
    value, known, seen = (
        torch.cat([read(part) for part in parts], -1)
        for read in (lambda part: part.value, known_variance, lambda part: part.seen)
    )
    with torch.no_grad():
        found = fit_factors(value, known, seen, factors=2, iterations=150)
    loadings, offset, noise = {}, {}, {}
    start = 0
    for name, size in SIZES.items():
        some, transform = slice(start, start + size), fit.scaler.transforms[name]
        loadings[name] = found.loadings.detach().numpy()[some] * transform.scale[:, None]
        offset[name] = transform.location + transform.scale * found.offset.detach().numpy()[some]
        noise[name] = np.exp(0.5 * found.log_noise.detach().numpy()[some]) * transform.scale
        start += size
    return LinearGaussian(loadings, offset, noise)


def distance(found, model, hidden):
    """Root-mean-square difference of the means in units of the exact SD; largest relative difference of SD by cell."""
    mean, covariance = model.posterior(hidden, ["y"])
    spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    by_cell = np.mean(found[1] / spread, axis=0) - 1
    return np.sqrt(np.mean(((found[0] - mean) / spread) ** 2)), np.abs(by_cell).max()


@pytest.mark.slow
def test_encoder_meets_the_closed_form_of_the_truth():
    model, table, hidden, fit = fitted(20_000, "encoder", max_steps=200)
    found = predictive(fit, hidden)
    mean, spread = distance(found, model, hidden)  # measured 0.015 and 0.7 %
    assert mean < 0.02
    assert spread < 0.02
    mean, spread = distance(found, maximum_likelihood(fit, table), hidden)  # measured 0.003 and 0.1 %
    assert mean < 0.006
    assert spread < 0.01


@pytest.mark.slow
def test_free_posteriors_meet_the_closed_form_of_the_truth():
    model, table, hidden, fit = fitted(20_000, "gaussian", max_steps=450)
    found = predictive(fit, hidden)
    mean, spread = distance(found, model, hidden)  # measured 0.016 and 0.8 %
    assert mean < 0.02
    assert spread < 0.02
    _, spread = distance(found, maximum_likelihood(fit, table), hidden)  # measured 0.1 %
    assert spread < 0.01


def test_free_posteriors_meet_the_closed_form_at_maximum_likelihood():
    model, table, hidden, fit = fitted(2000, "gaussian", max_steps=500, learning_rate=0.005)
    found = predictive(fit, hidden)
    mean, spread = distance(found, maximum_likelihood(fit, table), hidden)  # measured 0.006 and 0.2 %
    assert mean < 0.02
    assert spread < 0.01
    mean, spread = distance(found, model, hidden)  # maximum likelihood itself is 0.06 and 3 % away with 2 000 rows
    assert mean < 0.08
    assert spread < 0.05


def test_linear_networks_with_full_experts_are_exact():
    """The posterior and the evidence of the linear model that was learned, from any modality and from all.

    What each says is exact where the bounds of each alone are trained too; encoders are trained on at the end.
    """
    table = linear_gaussian(seed=0, latent_dim=2, sizes=SIZES).simulate(2000, seed=1)
    linear = dict.fromkeys(SIZES, "linear")
    family = cs.DisentangledVAE(shared=2, networks=linear, posterior="full", bounds=("joint", "self"))
    stages = (cs.Stage(name="all", steps=800), cs.Stage(name="encoders", steps=800, groups=("encoders",)))
    config = cs.TrainConfig(batch_size=500, validation=0, learning_rate=0.02, stages=stages)
    module = cs.fit(family, table, config).members[0].double()
    scaled = Scaler.fit(table).forward(table[:300]).to(dtype=torch.float64)
    layers = {name: module.decoders[name].layers[0] for name in SIZES}
    with torch.no_grad():
        exact = LinearGaussian(
            {name: layer.weight.numpy() for name, layer in layers.items()},
            {name: layer.bias.numpy() for name, layer in layers.items()},
            {name: module.likelihoods[name].learned().sqrt().numpy() for name in SIZES},
        )
        values = {name: part.value.numpy() for name, part in scaled.parts.items()}
        for hidden in ((), ("x",), ("y",)):
            context = replace(
                scaled,
                parts={
                    name: conceal(part, torch.full_like(part.seen, name in hidden))
                    for name, part in scaled.parts.items()
                },
            )
            seen = Observations.from_arrays(table.schema, values).hide(*hidden)
            mean, covariance = exact.latent(seen)
            spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
            found = module.condition(context).posterior
            assert np.sqrt(np.mean(((found.mean.numpy() - mean) / spread) ** 2)) < 0.03
            assert np.abs(found.std.numpy() / spread - 1).max() < 0.02
            torch.manual_seed(0)
            terms = module.terms(context, context)
            bound = -sum(float(terms[key].value.mean()) for key in ("nll/x", "nll/y", "kl/shared"))
            assert bound == pytest.approx(exact.log_prob(seen).mean(), abs=0.15)  # of one draw per row


@pytest.mark.parametrize("posterior", ["map", "point"])
def test_points_are_the_mode_and_the_maximum_likelihood(posterior):
    _, _, hidden, fit = fitted(1500, posterior, max_steps=60)
    model = fit.members[0].double()
    context = fit.scaler.forward(hidden).to(dtype=torch.float64)
    gp, likelihood, part = model.decoders["x"], model.likelihoods["x"], context.parts["x"]
    with torch.no_grad():
        found = model.condition(context).posterior
        corners = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
        at = gp.mean_at(gp.features(corners))
        loadings, offset = (at[1:] - at[0]).mT, at[0]  # f = W z + c
        weight = torch.where(part.seen, 1 / likelihood.total(part), 0.0)
        gram = torch.einsum("nd,dp,dq->npq", weight, loadings, loadings)
        right = (weight * (part.value - offset)) @ loadings
        prior = torch.eye(2).double() if posterior == "map" else torch.zeros(2, 2).double()
        known = torch.linalg.eigvalsh(gram)[:, 0] > 1  # maximum likelihood needs enough cells
        exact = torch.linalg.solve(gram[known] + prior, right[known])
    assert known.sum() > 200
    assert found.factor is None or float(found.factor[known].abs().max()) == 0
    # the uncertainty of W, left over from 1 500 rows, shrinks z a little
    away = (found.mean[known] - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert float(away) < 0.02
