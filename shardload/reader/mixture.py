"""Several sources in given shares."""

from __future__ import annotations

import hashlib
import math
import typing
from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import canonical_json
from shardload.order.blend import LEAST_SHARE, MAX_SOURCES, Blend
from shardload.order.mixture import MixtureOrders, Part, Stop, make_mixture_orders
from shardload.order.selection import Selection, resolve_indices
from shardload.order.shuffle import Shuffle
from shardload.quantities import as_integer
from shardload.reader.concat import Joined
from shardload.reader.source import SampleSource

Int64 = NDArray[np.int64]


class Mixture(Joined):
    """Several sources in given shares, each in its own order: what loaders and samplers read as one dataset.

    ```python
    mixture = shardload.Mixture({"web": (web, 0.7), "code": (code, 0.3)}, stop="all_exhausted")
    loader = shardload.ShardLoader(mixture, batch_size=256, shuffle=True, with_ids=True)    # batches have `_source`
    ```

    Of the first p samples of an epoch, for every p, each source has its share of p to within one sample; after a change of
    weights in mid-epoch that holds for the samples since then. `blend` holds the shares as whole numbers. No sample of a source
    comes twice within one pass over it, and its passes go on from epoch to epoch. Ids are those of the sources one after
    another; those from `len` on in a source, as of windows that are moved in each epoch, are from `len` on here too. States go
    with names and content, not with the weights: `load_state_dict(state, reweigh=True)` goes on with other weights from any
    place.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[SampleSource, float]],
        *,
        stop: Stop = "first_exhausted",
        num_samples: int | None = None,
    ) -> None:
        """Describes it; nothing is read.

        Args:
            sources: name -> source and weight: at most 64 that read fields of the same names and types, with the same transform
                and decoders or none. Weights count beside each other; 0 for a source that does not come for now.
            stop: what ends an epoch. `first_exhausted`: before a source would give more samples than it has; `all_exhausted`:
                when each has given as many as it has, while smaller ones repeat; `repeat`: after `num_samples`.
            num_samples: samples of an epoch with `repeat`; None for as many as all sources have together.

        Raises:
            ValueError: sources that do not go together, weights that are none, or an unknown rule.
        """
        if stop not in typing.get_args(Stop):
            raise ValueError(f"stop must be 'first_exhausted', 'all_exhausted' or 'repeat', not {stop!r:.60}")
        if num_samples is not None and stop != "repeat":
            raise ValueError(f"num_samples goes with stop='repeat'; with {stop!r} the sources say where an epoch ends")
        if not isinstance(sources, Mapping) or not 1 <= len(sources) <= MAX_SOURCES:
            raise ValueError(f"a mixture is made of a dict of 1 to {MAX_SOURCES} names, each with (source, weight)")
        for name, pair in sources.items():
            _check(name, pair)
        super().__init__([source for source, _ in sources.values()])
        self.names = tuple(sources)
        """Names of the sources, by the number that `_source` has in batches."""
        self.stop = stop
        self.num_samples = None if num_samples is None else as_integer(num_samples, "num_samples", 1)
        weights = {name: _exact(weight) for name, (_, weight) in sources.items()}
        for name, weight in weights.items():
            if 0 < weight * LEAST_SHARE < sum(weights.values()):
                raise ValueError(
                    f"{name!r} has less than a millionth of all weights: raise its weight, or leave it out"
                )
        if not any(weights.values()):
            raise ValueError("all weights of the mixture are 0: at least one source has to come")
        self.blend = Blend.of(list(weights.values()))
        """The shares of the sources in whole parts, as states hold them."""

    def __len__(self) -> int:
        """Samples of all sources together."""
        return int(self.first_ids[-1])

    @property
    def num_ids(self) -> int:
        """Sample ids that there are: of windows that are moved in each epoch more than samples."""
        return int(self._later_ids[-1])

    @cached_property
    def _later_ids(self) -> Int64:
        """First of the ids of each source that have no index there, and the end of the last: int64 of shape (sources + 1,)."""
        more = [source.num_ids - len(source) for source in self.sources]
        return len(self) + np.array([0, *accumulate(more)], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that names the sources by their names and contents, whatever weights they have."""
        facts = [[name, source.fingerprint] for name, source in zip(self.names, self.sources, strict=True)]
        return hashlib.sha256(canonical_json({"mixture of": facts})).hexdigest()

    def orders(self, shuffle: Shuffle) -> MixtureOrders:
        """Returns which sample stands at each position of each epoch.

        Args:
            shuffle: how each source is mixed.

        Raises:
            ValueError: a source that has a share has no samples.
        """
        described = zip(self.names, self.sources, self.first_ids.tolist(), self._later_ids.tolist(), strict=False)
        parts = [Part(name, source.orders(shuffle), first, later) for name, source, first, later in described]
        for part, share in zip(parts, self.blend.parts, strict=True):
            if share and not part.orders.num_positions:
                raise ValueError(f"{part.name!r} of the mixture has no samples: leave it out, or give it the weight 0")
        num_samples = self.num_samples
        if self.stop == "repeat" and num_samples is None:
            num_samples = sum(part.orders.num_positions for part in parts)
        return make_mixture_orders(parts, self.blend, self.stop, num_samples)

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Returns the name of the source that a sample is from, and its id there.

        Raises:
            IndexError: there is no such sample.
        """
        numbers, own = self._placed(self._sample_ids([sample_id]))
        return self.names[int(numbers[0])], int(own[0])

    def source_numbers(self, sample_ids: Int64) -> Int64:
        """Returns the number of the source that each sample is from, as `names` has them: int64 of the same shape."""
        return self._placed(sample_ids)[0]

    def stand_ins(self, seed: int, epoch: int, sample_id: int, count: int) -> list[int]:
        """Returns samples of the same source to be tried in the place of one that cannot be used."""
        numbers, own = self._placed(np.array([sample_id], dtype=np.int64))
        source, first = self.sources[int(numbers[0])], int(self.first_ids[int(numbers[0])])
        later = int(self._later_ids[int(numbers[0])]) - len(source)
        found = source.stand_ins(seed, epoch, int(own[0]), count)
        return [i + (first if i < len(source) else later) for i in found]

    def _view(self, selection: Selection) -> SampleSource:
        raise ValueError("a view of a mixture would have no shares: take views of its sources, and mix those")

    def _placed(self, sample_ids: Int64) -> tuple[Int64, Int64]:
        """Returns the number of the source of each sample, and its id there."""
        numbers, own = super()._placed(np.minimum(sample_ids, len(self) - 1))
        if self.num_ids > len(self) and (later := sample_ids >= len(self)).any():
            sizes = np.diff(self.first_ids)
            numbers[later] = np.searchsorted(self._later_ids, sample_ids[later], side="right") - 1
            own[later] = (sample_ids - self._later_ids[numbers] + sizes[numbers])[later]
        return numbers, own

    def _sample_ids(self, indices: typing.Any) -> Int64:
        return resolve_indices(indices, len(self), self.location, self.num_ids)


def _exact(weight: float | Fraction) -> Fraction:
    # Floats of numpy are taken by their value, which is that of a Python float; its integers likewise.
    return Fraction(weight if isinstance(weight, int | Fraction) else float(weight))


def _check(name: object, pair: object) -> None:
    """Refuses what is no source of a mixture."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the sources of a mixture have names of text, not {name!r:.60}")
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], SampleSource):
        raise ValueError(
            f"{name!r} of the mixture must be (source, weight), such as (shardload.open(...), 0.3), not {pair!r:.60}"
        )
    source, weight = pair
    if isinstance(source, Mixture):
        raise ValueError(
            f"{name!r} is a mixture itself: put its sources into this one, with the products of the weights"
        )
    number = isinstance(weight, int | float | Fraction | np.number) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:
        raise ValueError(f"the weight of {name!r} must be a number from 0, not {weight!r:.60}")
