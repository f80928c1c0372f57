"""What a checkpoint holds, and how it goes back into the objects of a run.

Keys: `model`, `optimizer` (by number), `loader`, `random` (by rank) and `extra` (by name). Models and optimizers go through
`torch.distributed.checkpoint.state_dict`, so that names do not depend on wrappers and shards not on the number of ranks.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from shardload.errors import StateMismatchError

_WHOLE = "_whole"
"""Key of the state of an extra that has no tensors: all of it, whatever its shape."""

Paths = frozenset[tuple[str | int, ...]]
"""Where the values of a saved checkpoint lie in its nested dictionaries."""


@runtime_checkable
class Stateful(Protocol):
    """Something with a state."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Takes up a state."""


class LoaderLike(Protocol):
    """A loader, sampler or batch sampler of shardload."""

    def state_dict(self) -> dict[str, str]:
        """Returns the state."""

    def load_state_dict(self, state: Mapping[str, Any], skip_samples: int = 0, reseed: int | None = None) -> None:
        """Takes up a state."""


@dataclass(frozen=True)
class Training:
    """The objects of a run that a checkpoint is of."""

    model: nn.Module
    optimizers: tuple[Optimizer, ...]
    loader: LoaderLike | None
    extra: Mapping[str, Stateful]

    def capture(self, loader_state: Mapping[str, str] | None) -> dict[str, Any]:
        """Returns what is to be saved, except for the random state. Tensors are the live ones."""
        state: dict[str, Any] = {"model": get_model_state_dict(self.model)}
        state["optimizer"] = {str(i): _captured(self.model, one) for i, one in enumerate(self.optimizers)}
        if loader_state is not None:
            state["loader"] = dict(loader_state)
        state["extra"] = {name: _packed(one.state_dict()) for name, one in self.extra.items()}
        return state

    def own_keys(self, state: Mapping[str, Any]) -> frozenset[str]:
        """Returns the keys of the model's part of a state that each rank may have differently: all but whole parameters."""
        places = {place.data_ptr() for place in self.model.parameters() if not hasattr(place, "placements")}
        return frozenset(
            f"model.{name}"
            for name, value in state["model"].items()
            if not isinstance(value, torch.Tensor) or not (hasattr(value, "placements") or value.data_ptr() in places)
        )

    def templates(self, saved: Paths, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Returns what a checkpoint is to be read into: the live tensors, and places for values.

        Args:
            saved: of the checkpoint.
            shapes: of its tensors, by key.

        Raises:
            StateMismatchError: the checkpoint is of something else.
        """
        model = get_model_state_dict(self.model)
        _compare(model, {str(path[1]) for path in saved if path[0] == "model"}, shapes)
        found: dict[str, Any] = {"model": model, "optimizer": {}, "extra": {}}
        for i, optimizer in enumerate(self.optimizers):
            _require(saved, ("optimizer", str(i)), f"an optimizer {i}")
            # Else torch would not give it the state that values are read into.
            optimizer.zero_grad(set_to_none=True)
            here: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer)
            _compare_entries(i, here["state"], saved)
            found["optimizer"][str(i)] = here
        for name, one in self.extra.items():
            _require(saved, ("extra", name), f"an extra {name!r}")
            found["extra"][name] = {_WHOLE: b""} if ("extra", name, _WHOLE) in saved else one.state_dict()
        return found

    def loader_template(self, saved: Paths) -> dict[str, Any]:
        """Returns what the loader's part of a checkpoint is to be read into; empty without a loader.

        Raises:
            StateMismatchError: the checkpoint has none.
        """
        if self.loader is None:
            return {}
        _require(saved, ("loader",), "the state of a loader")
        return {"loader": dict(self.loader.state_dict())}

    @contextmanager
    def unstepped_after_failure(self) -> Iterator[None]:
        """Takes what torch makes up for `templates` out of the optimizers again, if what is done within fails."""
        fresh = [optimizer for optimizer in self.optimizers if not optimizer.state]
        try:
            yield
        except BaseException:
            for optimizer in fresh:
                optimizer.state.clear()
            raise

    def group_templates(self, saved: Paths) -> dict[str, Any]:
        """Returns what the names in the parameter groups of a checkpoint are to be read into; of the optimizers that are here."""
        found: dict[str, Any] = {}
        for i in range(len(self.optimizers)):
            start = ("optimizer", str(i), "param_groups")
            numbers = {path[3] for path in saved if path[:3] == start}
            found[str(i)] = {"param_groups": [{"params": []} for _ in numbers]}
        return found

    def compare_groups(self, state: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Refuses parameter groups that are not those of a checkpoint: torch would mix up their settings.

        Args:
            state: of `templates`.
            saved: of `group_templates`, read into.

        Raises:
            StateMismatchError: the checkpoint is of another optimizer.
        """
        for i in range(len(self.optimizers)):
            here, there = (_groups_of(one[str(i)]["param_groups"]) for one in (state["optimizer"], saved))
            if here != there:
                raise StateMismatchError(
                    f"the checkpoint is of another optimizer {i}: it has {_counted(there)}, and this one {_counted(here)}, "
                    "not all of the same parameters"
                )

    def take_up(self, state: dict[str, Any], saved: Paths) -> None:
        """Puts what was read into the objects, except for the loader.

        Args:
            state: of `templates`, read into.
            saved: of the checkpoint.
        """
        set_model_state_dict(self.model, state["model"])
        # Parameters that never had a gradient have no state in the optimizer.
        options = StateDictOptions(strict=False)
        for i, optimizer in enumerate(self.optimizers):
            found = state["optimizer"][str(i)]
            known = {path[3] for path in saved if path[:3] == ("optimizer", str(i), "state")}
            found["state"] = {name: value for name, value in found["state"].items() if name in known}
            set_optimizer_state_dict(self.model, optimizer, found, options=options)
        for name, one in self.extra.items():
            one.load_state_dict(_unpacked(state["extra"][name]))


def as_optimizers(optimizer: Optimizer | Iterable[Optimizer] | None) -> tuple[Optimizer, ...]:
    """Returns optimizers as given: none, one or several."""
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)


def check_training(model: Any, optimizers: Sequence[Any], loader: Any, extra: Mapping[str, Any]) -> None:
    """Refuses what has no state of the right kind.

    Raises:
        TypeError: says what has to be given.
        ValueError: an optimizer is of something else than the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}; more of them go into extra=")
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer or several, not {type(one).__name__}")
    own = set(map(id, model.parameters()))
    for i, one in enumerate(optimizers):
        if not all(id(place) in own for group in one.param_groups for place in group["params"]):
            raise ValueError(
                f"optimizer {i} has parameters that are not the model's: make it after the model is wrapped, and put what is "
                "trained together into one model, such as a ModuleDict"
            )
    for name, one in [("loader", loader), *extra.items()]:
        if not isinstance(one, Stateful) and not (name == "loader" and one is None):
            raise TypeError(f"{name!r} must have state_dict() and load_state_dict(); {type(one).__name__} has not")


def check_loader_state(state: Any) -> dict[str, str]:
    """Returns a loader's state if it is of the one form that is the same on all ranks.

    Raises:
        ValueError: it is another one.
    """
    if not isinstance(state, Mapping) or not all(isinstance(item, str) for pair in state.items() for item in pair):
        raise ValueError(
            "loader= takes a ShardLoader, ShardSampler or batch sampler of shardload, whose state is one text and the same on all "
            "ranks; give others as extra="
        )
    return dict(state)


def _captured(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer; none of its own where it has not taken a step yet, or never has any."""
    if optimizer.state:
        return dict(get_optimizer_state_dict(model, optimizer))
    # torch would make some up by a step of zeros, which counts in what follows (Adam's bias correction) and runs its hooks.
    optimizer.state[optimizer.param_groups[0]["params"][0]] = {}
    try:
        return dict(get_optimizer_state_dict(model, optimizer)) | {"state": {}}
    finally:
        optimizer.state.clear()


def _packed(state: Any) -> dict[str, Any]:
    """Returns a state as torch's checkpoint takes it: with tensors as it is, else as one value."""
    if isinstance(state, Mapping) and _has_tensors(state):
        return dict(state)
    data = io.BytesIO()
    torch.save(state, data)
    return {_WHOLE: data.getvalue()}


def _unpacked(state: dict[str, Any]) -> Any:
    if state.keys() != {_WHOLE}:
        return state
    # As torch's checkpoint itself reads what is no tensor.
    return torch.load(io.BytesIO(state[_WHOLE]), map_location="cpu", weights_only=False)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, Mapping):
        return any(map(_has_tensors, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_tensors, value))


def _require(saved: Paths, start: tuple[str | int, ...], what: str) -> None:
    if not any(path[: len(start)] == start for path in saved):
        raise StateMismatchError(
            f"the checkpoint was saved without {what}: leave it out here, or restore another checkpoint"
        )


def _compare_entries(number: int, here: Mapping[str, Any], saved: Paths) -> None:
    """Refuses another kind of optimizer: what it keeps of a parameter is not what the checkpoint has of it, if it has anything."""
    there: dict[str, set[str]] = {}
    for path in saved:
        if path[:3] == ("optimizer", str(number), "state") and len(path) > 4:
            there.setdefault(str(path[3]), set()).add(str(path[4]))
    for name, entries in sorted(there.items()):
        # Empty containers leave nothing in a checkpoint.
        kept = {key for key, one in here.get(name, {}).items() if not isinstance(one, (Mapping, list)) or one}
        if kept != entries:
            raise StateMismatchError(
                f"the checkpoint is of another optimizer {number}: of {name} it has {', '.join(sorted(entries))}, and this one "
                f"{', '.join(sorted(kept)) or 'nothing'}"
            )


def _groups_of(groups: Iterable[Mapping[str, Any]]) -> set[frozenset[str]]:
    return {frozenset(group["params"]) for group in groups}


def _counted(groups: set[frozenset[str]]) -> str:
    return f"{sum(map(len, groups))} parameters in {len(groups)} group{'s' * (len(groups) > 1)}"


def _compare(here: Mapping[str, Any], saved: set[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    # Empty containers leave nothing in a checkpoint.
    wanted = {name for name, value in here.items() if not isinstance(value, (Mapping, list)) or value}
    for names, where in (
        (wanted - saved, "is not in the checkpoint"),
        (saved - here.keys(), "is in the checkpoint only"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise StateMismatchError(f"the checkpoint is of another model: {sorted(names)[0]}{more} {where}")
    for name, value in here.items():
        shape = shapes.get(f"model.{name}")
        if isinstance(value, torch.Tensor) and shape is not None and tuple(value.shape) != shape:
            raise StateMismatchError(
                f"the checkpoint is of another model: {name} has shape {shape} in it, and {tuple(value.shape)} here"
            )
