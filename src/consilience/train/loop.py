"""The one training loop, on Lightning Fabric: terms in, weights and steps out."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from consilience.data.batching import BatchSchedule
from consilience.data.masking import AbstractPolicy
from consilience.data.observations import Observations
from consilience.data.streaming import FIELDS, Streamed
from consilience.data.turning import turned
from consilience.errors import RequestError, TrainingError
from consilience.models.base import AbstractFamily, AbstractModel, Group, Phase
from consilience.train.balance import balanced, relative_errors
from consilience.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimiser_state,
    restore_optimiser,
    save_checkpoint,
    write_atomic,
)
from consilience.train.config import Stage, TrainConfig
from consilience.train.progress import ProgressBar
from consilience.train.weights import objective, weights_at

__all__ = ["SOME", "History", "adam", "train"]

History = list[dict[str, float]]
SOME = 10_000  # rows of a table on disk that are held in memory for what wants many at once


@dataclass
class _Run:
    """What changes while a run goes on."""

    history: History = field(default_factory=list)
    best: float = math.inf
    best_state: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    averages: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)  # of modalities that are balanced


def train(
    model: AbstractModel,
    data: Observations | Streamed,
    held_out: Observations | None,
    family: AbstractFamily,
    config: TrainConfig,
    *,
    resume: bool = False,
) -> History:
    """Train a model in place on a scaled table (numpy) and return the history of its terms.

    Of a table on disk the start and what is settled at the end see at most ``SOME`` rows drawn at random.

    Every step draws its randomness from (seed, stage, step), so a resumed run ends where an uninterrupted one does.

    Arguments:
        model: What to train; ends with the best validated weights where there are held-out rows, else the last.
        data: Scaled training rows, in memory or on disk.
        held_out: Scaled validation rows, or None.
        family: Names the default masking policy.
        config: Everything else.
        resume: Continue from ``config.checkpoint`` if there is a checkpoint.

    Raises:
        RequestError: rows on disk, or images to augment, for a model with a posterior of its own for every row; balance
            without held-out rows; weight decay without networks.
        SchemaError: balance of a modality that the table has not.
        TrainingError: a term is not finite, which it names, or a matrix cannot be factored.
        ModelFileError: the checkpoint is damaged or another run's.
    """
    fabric = Fabric(accelerator=config.device, devices=1, precision=config.precision)
    dtype = torch.float64 if config.precision == "64-true" else torch.float32
    table = _tensors(data, fabric.device, dtype)
    if isinstance(table, Streamed) and _has_locals(model):
        raise RequestError(
            "Expected a model that reads every row with an encoder for rows on disk; got one with a posterior of its "
            "own for each row. Use posterior='encoder', or read the table into memory."
        )
    if config.augment and _has_locals(model):
        raise RequestError(
            f"Expected a model that reads every row with an encoder to augment {list(config.augment)}; got one with a "
            "posterior of its own for each row, which has one direction. Use posterior='encoder', or drop augment."
        )
    valid = None if held_out is None else held_out.to(fabric.device, dtype)
    if config.balance is not None:
        if valid is None or _has_locals(model):
            raise RequestError("Expected held-out rows that an encoder reads for balance; got none. Raise validation.")
        for name in config.balance.names:
            data.schema[name]
    model.to(fabric.device, dtype)
    stages = config.stages or _stages(_steps(config, len(data)), family.phases)
    directory = None if config.checkpoint is None else Path(config.checkpoint)
    key = "" if directory is None else _key(family, config, data)  # reads the whole table
    if resume and directory is None:
        raise RequestError("Expected TrainConfig(checkpoint=…) to resume from; got none. Name the directory.")
    saved = load_checkpoint(directory, key) if resume and directory is not None else None
    run = _Run()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_number(config.seed, "start"))
        try:
            if saved is None:
                model.start(_some(table, config.seed))
            else:
                _restore(model, run, saved)
            first = 0 if saved is None else int(saved.meta["stage"])  # type: ignore[call-overload]
            for number in range(first, len(stages)):
                loop = _StageLoop(fabric, model, table, valid, _policy(family, config), config, stages[number], number)
                loop.run(run, saved if saved is not None and number == first else None, directory, key)
            model.settle(_some(table, config.seed) if valid is None else valid)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise TrainingError(
                f"Expected matrices that can be factored; got: {str(error).splitlines()[0]} "
                "Look for extreme values or tiny error bars, or lower the learning rate."
            ) from error
    if directory is not None:
        write_atomic(directory / "history.csv", _csv(run.history))
    return run.history


def adam(groups: Iterable[Group], rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Adam over these groups, each with its factor, in one pass over all parameters and moments.

    Weight decay is decoupled from the moments (Loshchilov & Hutter, 2019): each step multiplies the matrices of
    networks by 1 - rate · decay. It spares vectors, which are offsets, noises and scales.
    """
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in groups:
        for parameter in group.parameters.values():
            shrinks = weight_decay if group.decays and parameter.ndim > 1 else 0.0
            alike.setdefault((group.factor, shrinks), []).append(parameter)
    options = [{"params": some, "factor": factor, "weight_decay": decay} for (factor, decay), some in alike.items()]
    return torch.optim.AdamW(options, lr=rate, fused=True)


class _StageLoop:
    def __init__(
        self,
        fabric: Fabric,
        model: AbstractModel,
        table: Observations | Streamed,
        valid: Observations | None,
        policy: AbstractPolicy | None,
        config: TrainConfig,
        stage: Stage,
        number: int,
    ) -> None:
        if stage.prepared:
            table = table.mapped(model.prepare) if isinstance(table, Streamed) else model.prepare(table)
            valid = None if valid is None else model.prepare(valid)
        self.fabric, self.model, self.table, self.valid = fabric, model, table, valid
        self.augment = () if stage.prepared else config.augment  # features cannot be turned
        self.policy, self.config, self.stage, self.number = policy, config, stage, number
        groups = [g for g in model.groups() if not stage.groups or g.name in stage.groups]
        if not groups:
            known = [g.name for g in model.groups()]
            raise RequestError(f"Expected groups among {known} in stage '{stage.name}'; got {list(stage.groups)}.")
        self.groups = groups
        self.named: Mapping[str, nn.Parameter] = {n: p for g in groups for n, p in g.parameters.items()}
        if config.weight_decay and not any(group.decays for group in groups):
            raise RequestError(
                f"Expected networks in stage '{stage.name}' for weight_decay={config.weight_decay:g}; got only groups "
                f"{[group.name for group in groups]}, none of which it shrinks. Drop weight_decay."
            )
        self.optimiser = adam(groups, config.learning_rate, config.weight_decay)
        _, self.wrapped_optimiser = fabric.setup(model, self.optimiser)
        model.train(stage.gradient)
        self.schedule = _schedule(table, config.batch_size, _number(config.seed, stage.name))
        self.weights = {**config.weights, **stage.weights}

    def run(self, run: _Run, saved: Checkpoint | None, directory: Path | None, key: str) -> None:
        begin = 0
        if saved is not None:
            begin = int(saved.meta["step"])  # type: ignore[call-overload]
            restore_optimiser(self.optimiser, self.named, saved.tensors)
        else:
            run.best, run.waited, run.best_state = math.inf, 0, {}
        stopped = run.waited >= (self.config.patience or math.inf)
        step = begin
        with ProgressBar(f"training ({self.stage.name})", self.stage.steps) as bar:
            while step < self.stage.steps and not stopped:
                self._step(step, run)
                step += 1
                if self._due(step):
                    stopped = self._evaluate(step, run)
                    bar.advance(step, f"{run.history[-1]['train/total']:.2f} nats")
                last = stopped or step == self.stage.steps
                if directory is not None and (step % self.config.checkpoint_every == 0 or last):
                    self._save(directory, key, step, run)
        if run.best_state:
            self.model.load_state_dict(run.best_state)
            self.model.refresh()

    def _due(self, step: int) -> bool:
        return step % self.config.evaluate_every == 0 or step == self.stage.steps

    def _step(self, step: int, run: _Run) -> None:
        torch.manual_seed(_number(self.config.seed, f"{self.stage.name}/{step}"))
        target = self.table[torch.as_tensor(self.schedule.rows(step)).numpy()]
        target = turned(target, self.augment, torch.default_generator)
        context = target if self.policy is None else self.policy(target, torch.default_generator)
        rate = _cosine(step / self.stage.steps, self.config.decay)
        weights = _Weights(step, self.weights)
        scale = len(self.table) / len(target)
        self.model.closed_form_step(context, target, scale, weights, self.config.closed_form_rate * rate)
        if not self.stage.gradient:
            if self._due(step + 1):
                with torch.no_grad():
                    terms = self.model(context, target)
                weighted = weights_at(step, terms, self.weights)
                _, values = objective(terms, weighted)
                run.averages = {**values, "total": _reported(values, weighted)}
            return
        with self.fabric.autocast():  # the batch has the model's precision: Fabric's own cast cannot read it
            terms = self.model(context, target)
        weighted = balanced(weights_at(step, terms, self.weights), run.factors)
        total, values = objective(terms, weighted)
        self.optimiser.zero_grad()
        self.fabric.backward(total)
        for options in self.optimiser.param_groups:
            options["lr"] = self.config.learning_rate * options["factor"] * rate
        for group in self.groups:
            clip = group.clip if group.clip is not None else self.config.clip
            if clip is not None:
                nn.utils.clip_grad_norm_(list(group.parameters.values()), clip)
        self.wrapped_optimiser.step()
        for name, value in {**values, "total": _reported(values, weighted)}.items():
            past = run.averages.get(name, value)
            run.averages[name] = 0.9 * past + 0.1 * value

    def _evaluate(self, step: int, run: _Run) -> bool:
        """Record the terms; True when patience is at an end."""
        row = {"stage": float(self.number), "step": float(step)}
        row |= {f"train/{name}": value for name, value in run.averages.items()}
        if self.valid is not None and not _has_locals(self.model):
            torch.manual_seed(_number(self.config.seed, f"{self.stage.name}/validation"))
            with torch.no_grad():
                terms = self.model.terms(self.valid, self.valid)
                # weights of the end: totals of steps with other weights could not be compared
                weighted = weights_at(self.stage.steps, terms, self.weights)
                _, values = objective(terms, weighted)
            row |= {f"validation/{name}": value for name, value in values.items()}
            if self.config.balance is not None:
                errors = relative_errors(self.model, self.valid, self.config.balance.names)
                run.factors = self.config.balance.factors(errors)
                row |= {f"balance/{name}": value for name, value in run.factors.items()}
            row["validation/total"] = _reported(values, weighted)
            if row["validation/total"] < run.best:
                run.best, run.waited = row["validation/total"], 0
                run.best_state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            else:
                run.waited += 1
        run.history.append(row)
        return run.waited >= (self.config.patience or math.inf)

    def _save(self, directory: Path, key: str, step: int, run: _Run) -> None:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in run.best_state.items()}
        tensors |= optimiser_state(self.optimiser, self.named)
        meta: dict[str, object] = {"stage": self.number, "step": step, "history": run.history}
        meta |= {"best": run.best, "waited": run.waited, "averages": run.averages, "factors": run.factors}
        save_checkpoint(directory, Checkpoint(tensors, meta, key))
        write_atomic(directory / "history.csv", _csv(run.history))


def _reported(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The objective without ``fit`` terms, by which auxiliary networks learn that nobody asked for."""
    return sum(weights[name] * value for name, value in values.items() if not name.startswith("fit/"))


class _Weights(dict[str, float]):
    """Weights of a step, resolved by name when asked."""

    def __init__(self, step: int, weights: Mapping[str, object]) -> None:
        super().__init__()
        self._step, self._patterns = step, weights

    def get(self, key: str, default: float = 1.0) -> float:  # type: ignore[override]
        return weights_at(self._step, [key], self._patterns)[key]  # type: ignore[arg-type]


def _restore(model: AbstractModel, run: _Run, saved: Checkpoint) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in saved.tensors.items() if n.startswith(prefix)}

    model.load_state_dict(under("model/"))
    model.refresh()
    run.best_state = under("best/")
    run.history = list(saved.meta["history"])  # type: ignore[call-overload]
    run.best, run.waited = float(saved.meta["best"]), int(saved.meta["waited"])  # type: ignore[arg-type]
    run.averages = dict(saved.meta["averages"])  # type: ignore[call-overload]
    run.factors = dict(saved.meta["factors"])  # type: ignore[call-overload]


def _tensors(data: Observations | Streamed, device: torch.device, dtype: torch.dtype) -> Observations | Streamed:
    return data.mapped(lambda obs: obs.to(device, dtype)) if isinstance(data, Streamed) else data.to(device, dtype)


def _some(table: Observations | Streamed, seed: int) -> Observations:
    return table.some(SOME, seed=seed) if isinstance(table, Streamed) else table


def _schedule(table: Observations | Streamed, size: int, seed: int) -> BatchSchedule:
    if isinstance(table, Streamed):
        return BatchSchedule(len(table), size, seed, table.blocks, table.source.window)
    return BatchSchedule(len(table), size, seed)


def _has_locals(model: AbstractModel) -> bool:
    return "locals" in {group.name for group in model.groups()}


def _policy(family: AbstractFamily, config: TrainConfig) -> AbstractPolicy | None:
    if config.masking == "none":
        return None
    return family.default_policy if config.masking == "default" else config.masking


def _stages(steps: int, phases: Iterable[Phase]) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            name=phase.name,
            steps=math.ceil(phase.share * steps),
            groups=phase.groups,
            weights=dict(phase.weights),
            gradient=phase.gradient,
            prepared=phase.prepared,
        )
        for phase in phases
    )


def _steps(config: TrainConfig, rows: int) -> int:
    if config.max_epochs is None:
        return config.max_steps
    return min(config.max_steps, config.max_epochs * BatchSchedule(rows, config.batch_size, 0).steps_per_epoch)


def _cosine(part: float, least: float) -> float:
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * part))


def _number(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=7).digest(), "little")


def _key(family: AbstractFamily, config: TrainConfig, data: Observations | Streamed) -> str:
    fixed = config.model_dump_json(exclude={"checkpoint", "checkpoint_every", "device"})
    parts = [family.model_dump_json(), fixed, data.schema.model_dump_json(), *data.ids.tolist()]
    digest = hashlib.sha256("\x1f".join(parts).encode())
    if isinstance(data, Streamed):
        digest.update(f"{data.source.fingerprint()}/{data.source.window}".encode())
        return digest.hexdigest()
    for part in data.parts.values():
        for array in (getattr(part, name) for name in FIELDS):
            digest.update(b"none" if array is None else array.tobytes())
    return digest.hexdigest()


def _csv(history: History) -> bytes:
    columns = list(dict.fromkeys(name for row in history for name in row))
    lines = [",".join(columns)] + [",".join(str(row.get(name, "")) for name in columns) for row in history]
    return ("\n".join(lines) + "\n").encode()
