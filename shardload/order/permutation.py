"""The keyed permutation: the order of one epoch, computed and never stored.

`Permutation(n, seed=s, epoch=e)` is a bijection on [0, n) from position to sample id, with its inverse. It is a pure
function of four integers, made of integer arithmetic only, so it is the same on every machine, under every version of
numpy and for every way of cutting the positions into requests.

Recipe 1
--------
What follows is the whole of it. Changing anything here means a new recipe number. All arithmetic is on unsigned
integers, `^` is exclusive or, `>>` drops bits, and `bits(x)` is the number of binary digits of x (`int.bit_length`).

*Key.* The stream is SHAKE-256 of the ASCII text ``shardload order recipe=1 num_samples=<n> seed=<s> epoch=<e>``
(decimal numbers, single spaces, no newline), read as little-endian words.

*n <= 65,536: a sorted table.* The first two 64-bit words of the stream are K0 and K1. With `mix` the finaliser of
SplitMix64 (Steele, Lea, Flood 2014),

    mix(z):  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31

modulo 2**64, the ids are sorted by mix(mix(id + K0) ^ K1), all modulo 2**64, and the position of an id is its place in
that order. `mix` is a bijection, so there are no ties, and every sorting algorithm gives the same answer.

*n > 65,536: a Feistel network of nine rounds over two unequal sides, with cycle walking* (Black and Rogaway, "Ciphers
with Arbitrary Finite Domains", 2002). With w = bits(n - 1), the low side has k = max(w // 2, w - 31) bits, and the high
side counts modulo B = ceil(n / 2**k), which is at most 2**31. A position x is split into a = x mod 2**k and b = x >> k.
Round i = 0..8 uses the 32-bit words X = word[2 i] and M = word[2 i + 1] | 1 of the stream, and modulo 2**32

    hash(v):  h = v ^ X;  h *= 0x7FEB352D;  h ^= h >> 16;  h *= M

    even i:   a = a ^ (hash(b) >> (32 - k))
    odd i:    b = (b + r(hash(a))) mod B,   r(h) = (h * B) >> 32                 where B > 4,096 (a 64-bit product)
                                            r(h) = ((h >> 12) * B) >> 20         where B <= 4,096

The result is b * 2**k + a. Sides that are not both powers of two make the domain exceed n by less than 2**k, about the
root of n; a result that is not below n is put through the network again until it is. The inverse undoes the rounds
from the last to the first and walks in the same way.

Why so
------
Seven rounds are the fewest that pass every statistical test of `tests/order`; six fail on pairs that share a side, as
theory says (Patarin, "Security of Random Feistel Schemes with 5 or More Rounds", 2004, counts such pairs). Two more are
margin. Cheaper round functions failed with every number of rounds tried: one multiplication (up to eight), a square
(up to nine, on the largest sizes). Below the threshold sides are too short for the network, and a table is faster as well.
"""

import functools
import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RECIPE", "Permutation"]

RECIPE = 1

MAX_NUM_SAMPLES = 2**63 - 1
TABLE_MAX = 65_536
ROUNDS = 9
# 65,536 ids at a time: a call of a ufunc costs 0.3 us before it touches data, and the scratch (24 bytes an id) still
# lies in a second-level cache of 1 to 2 MiB.
BLOCK = 65_536
SHORT_RADIX_MAX = 4_096

_U32 = NDArray[np.uint32]
_U64 = NDArray[np.uint64]


def _u32(value: int) -> _U32:
    """A constant as an array of no dimensions: ufuncs take it in half the time of a numpy scalar."""
    return np.array(value, dtype=np.uint32)


def _u64(value: int) -> _U64:
    return np.array(value, dtype=np.uint64)


_MULTIPLIER = _u32(0x7FEB352D)
_HALF = _u32(16)
_SHORT_DROP = _u32(12)
_SHORT_KEEP = _u32(20)
_LONG_KEEP = _u64(32)


def _require_int(name: str, value: object, stop: int, limit: str) -> None:
    """Raise unless `value` is an int (bool is not) in [0, stop); `limit` is how the message writes `stop - 1`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}: {value!r}")
    if not 0 <= value < stop:
        raise ValueError(f"{name} must be between 0 and {limit}, not {value}")


def _key_words(num_bytes: int, dtype: str, num_samples: int, seed: int, epoch: int) -> list[int]:
    text = f"shardload order recipe=1 num_samples={num_samples} seed={seed} epoch={epoch}"
    stream = hashlib.shake_256(text.encode("ascii")).digest(num_bytes)
    words: list[int] = np.frombuffer(stream, dtype=dtype).tolist()
    return words


class _Scratch:
    """Working memory for blocks of up to `size` ids: a, b, h, g (uint32) and t (uint64)."""

    __slots__ = ("size", "wide", "words")

    def __init__(self, size: int) -> None:
        self.size = size
        self.words: _U32 = np.empty((4, size), dtype=np.uint32)
        self.wide: _U64 = np.empty(size, dtype=np.uint64)


_local = threading.local()


def _borrow_scratch(size: int) -> _Scratch:
    """This thread's scratch, or a new one; hand it back by `_local.scratch = scratch`.

    It is taken out while in use, so that a signal handler or finalizer that asks for ids half-way through a block
    gets memory of its own.
    """
    scratch: _Scratch | None = _local.__dict__.pop("scratch", None)
    return scratch if scratch is not None and scratch.size >= size else _Scratch(size)


class _Network:
    """The Feistel network of recipe 1 for one (num_samples, seed, epoch); see the module docstring for its names."""

    __slots__ = ("high_radix", "keys", "low_bits", "num_samples", "shift")

    def __init__(self, num_samples: int, seed: int, epoch: int) -> None:
        width = (num_samples - 1).bit_length()
        self.num_samples = num_samples
        self.low_bits = max(width // 2, width - 31)
        self.high_radix = -(-num_samples // 2**self.low_bits)
        self.shift = _u32(32 - self.low_bits)
        words = _key_words(8 * ROUNDS, "<u4", num_samples, seed, epoch)
        self.keys = [(_u32(words[2 * i]), _u32(words[2 * i + 1] | 1)) for i in range(ROUNDS)]

    def map_block(self, source: _U64, target: _U64, *, inverse: bool) -> None:
        """Write the images of `source`, uint64 of shape (N,), to `target`; both below num_samples, N <= BLOCK."""
        scratch = _borrow_scratch(len(source))
        self._apply(source, target, scratch, inverse)
        if self.high_radix << self.low_bits != self.num_samples:
            limit = _u64(self.num_samples)
            outside = np.flatnonzero(target >= limit)
            while len(outside):
                walked = target[outside]
                self._apply(walked, walked, scratch, inverse)
                target[outside] = walked
                outside = outside[walked >= limit]
        _local.scratch = scratch

    def _apply(self, source: _U64, target: _U64, scratch: _Scratch, inverse: bool) -> None:
        """Run the rounds once; `target` may be `source`."""
        size = len(source)
        low, high, hashed, spare = scratch.words[:, :size]
        wide = scratch.wide[:size]
        low_bits = _u64(self.low_bits)
        np.copyto(low, source, casting="unsafe")  # keeps the low 32 bits
        np.bitwise_and(low, _u32(2**self.low_bits - 1), out=low)
        np.right_shift(source, low_bits, out=high, casting="unsafe")
        add = _subtract_modulo if inverse else _add_modulo
        order = range(ROUNDS - 1, -1, -1) if inverse else range(ROUNDS)
        for i in order:
            if i % 2 == 0:
                _hash(high, self.keys[i], hashed, spare)
                np.right_shift(hashed, self.shift, out=hashed)
                np.bitwise_xor(low, hashed, out=low)
            else:
                _hash(low, self.keys[i], hashed, spare)
                _reduce(hashed, self.high_radix, wide)
                add(high, hashed, _u32(self.high_radix), spare)
        np.copyto(wide, high)
        np.left_shift(wide, low_bits, out=wide)
        np.copyto(target, low)
        np.bitwise_or(target, wide, out=target)


def _hash(side: _U32, keys: tuple[_U32, _U32], out: _U32, spare: _U32) -> None:
    """The round function; its high bits are the good ones."""
    exclusive, multiplier = keys
    np.bitwise_xor(side, exclusive, out=out)
    np.multiply(out, _MULTIPLIER, out=out)
    np.right_shift(out, _HALF, out=spare)
    np.bitwise_xor(out, spare, out=out)
    np.multiply(out, multiplier, out=out)


def _reduce(hashed: _U32, radix: int, wide: _U64) -> None:
    """Bring hashes into [0, radix) by a multiplication (Lemire 2019), in place.

    No value is met more than 1/256 oftener than another (short) or radix / 2**32 (long). The short form stays within
    32 bits, which takes a third of the time and is what keeps sets of about a million samples fast.
    """
    if radix <= SHORT_RADIX_MAX:
        np.right_shift(hashed, _SHORT_DROP, out=hashed)
        np.multiply(hashed, _u32(radix), out=hashed)
        np.right_shift(hashed, _SHORT_KEEP, out=hashed)
    else:
        np.copyto(wide, hashed)
        np.multiply(wide, _u64(radix), out=wide)
        np.right_shift(wide, _LONG_KEEP, out=hashed, casting="unsafe")


def _add_modulo(side: _U32, amount: _U32, radix: _U32, spare: _U32) -> None:
    """Set side to (side + amount) mod radix, for both below radix <= 2**31, without a division.

    A difference that should be negative wraps to at least 2**31, so the smaller of the two is the one in range.
    """
    np.add(side, amount, out=side)
    np.subtract(side, radix, out=spare)
    np.minimum(side, spare, out=side)


def _subtract_modulo(side: _U32, amount: _U32, radix: _U32, spare: _U32) -> None:
    """Set side to (side - amount) mod radix, in the same way."""
    np.subtract(side, amount, out=side)
    np.add(side, radix, out=spare)
    np.minimum(side, spare, out=side)


def mix(z: _U64) -> _U64:
    """Returns the finaliser of SplitMix64 of uint64 numbers, in place."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


# As many as the sources of a mixture usually need at a time.
@functools.lru_cache(maxsize=16)
def _tables(num_samples: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(position -> id, id -> position) of a small set, int64, read-only, at most 1 MiB together; shared by threads."""
    first, second = _key_words(16, "<u8", num_samples, seed, epoch)
    hashes = mix(mix(np.arange(num_samples, dtype=np.uint64) + np.uint64(first)) ^ np.uint64(second))
    sample_ids = np.argsort(hashes).astype(np.int64, copy=False)
    positions = np.empty_like(sample_ids)
    positions[sample_ids] = np.arange(num_samples, dtype=np.int64)
    sample_ids.flags.writeable = False
    positions.flags.writeable = False
    return sample_ids, positions


@dataclass(frozen=True, slots=True)
class Permutation:
    """The order of one epoch: which sample stands at which position.

    A pure function of its four arguments: rank, world size, workers, shards and batch size are not among them. It
    holds no order, only keys (about 3 KB), takes microseconds to make, may be shared between threads, and pickles as
    its arguments. Recipe 1, in the module docstring, says exactly what it computes.

    Cost: about 10 ns an id in requests of 65,536 and more, and about 40 us for a request of any small size, so ask for
    blocks and slice them. Up to 65,536 samples the first request of an epoch sorts a table (a few ms; the last 16
    tables are kept), and a request is then a lookup. Each thread keeps 24 bytes of scratch an id of its largest
    request, at most 1.5 MiB.

    Attributes:
        num_samples: size of the dataset, 0 to 2**63 - 1. With 0 every position is out of range.
        seed: 0 to 2**64 - 1; another seed gives an unrelated order.
        epoch: 0 to 2**63 - 1; so does another epoch.
        recipe: version of the computation; this version of shardload knows 1.

    Raises:
        TypeError: an argument is not an int (bool is not one).
        ValueError: an argument is out of its range, or the recipe is unknown.
    """

    num_samples: int
    seed: int = field(kw_only=True)
    epoch: int = field(kw_only=True)
    recipe: int = field(default=RECIPE, kw_only=True)
    _network: _Network | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_int("num_samples", self.num_samples, MAX_NUM_SAMPLES + 1, "2**63 - 1")
        _require_int("seed", self.seed, 2**64, "2**64 - 1")
        _require_int("epoch", self.epoch, 2**63, "2**63 - 1")
        if type(self.recipe) is not int or self.recipe != RECIPE:
            raise ValueError(f"unknown order recipe {self.recipe!r}: this version of shardload knows recipe {RECIPE}")
        network = _Network(self.num_samples, self.seed, self.epoch) if self.num_samples > TABLE_MAX else None
        object.__setattr__(self, "_network", network)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments, so that a reader of another version checks the recipe and derives its own keys."""
        return _rebuild, (type(self), self.num_samples, self.seed, self.epoch, self.recipe)

    def sample_ids(self, positions: ArrayLike) -> NDArray[np.int64]:
        """The sample ids at the given positions.

        Args:
            positions: integers in [0, num_samples), of any shape and in any order; repeats are allowed.

        Returns:
            int64 of the same shape, new memory that belongs to the caller.

        Raises:
            IndexError: a position is out of range; names the first such one.
            TypeError: the positions are not integers.
        """
        return self._map(positions, "position", inverse=False)

    def positions(self, sample_ids: ArrayLike) -> NDArray[np.int64]:
        """The positions at which the given samples stand: the inverse of `sample_ids`, with the same rules."""
        return self._map(sample_ids, "sample id", inverse=True)

    def _map(self, values: ArrayLike, noun: str, *, inverse: bool) -> NDArray[np.int64]:
        given = np.asarray(values)
        if given.size == 0:  # also [], which numpy takes for float64
            return np.empty(given.shape, dtype=np.int64)
        if given.dtype.kind not in "iu":
            raise TypeError(f"{noun}s must be integers of at most 64 bits, not an array of {given.dtype}")
        # As unsigned numbers the negative ones are too large, so one comparison finds both kinds of bad value.
        source = np.ascontiguousarray(given, dtype=np.int64).reshape(-1).view(np.uint64)
        if int(source.max()) >= self.num_samples:
            first = int(given.reshape(-1)[np.flatnonzero(source >= np.uint64(self.num_samples))[0]])
            raise IndexError(f"{noun} {first} is out of range for {self.num_samples} samples")
        if self._network is None:
            table = _tables(self.num_samples, self.seed, self.epoch)[inverse]
            return table[source.view(np.int64)].reshape(given.shape)
        target = np.empty(len(source), dtype=np.int64)
        for start in range(0, len(source), BLOCK):
            stop = start + BLOCK
            self._network.map_block(source[start:stop], target[start:stop].view(np.uint64), inverse=inverse)
        return target.reshape(given.shape)


def _rebuild(cls: type[Permutation], num_samples: int, seed: int, epoch: int, recipe: int) -> Permutation:
    return cls(num_samples, seed=seed, epoch=epoch, recipe=recipe)
