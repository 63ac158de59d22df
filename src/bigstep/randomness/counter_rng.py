"""Random numbers as a hash of (key, sample, element): the same however the samples are cut.

Each sample has a 64-bit state, from which a counter-based generator (splitmix64: Steele, Lea and Flood, 2014) gives one
64-bit word an element or one for several. Integers wrap around in int64 on every device, so every device draws the same.

k key of a random call, i sample (its position in the effective batch), j word of the sample.
"""

import math
from typing import final

import torch
from torch import Tensor

__all__ = ["CallKeys", "bernoulli_mask", "derive_seed", "normal_values", "uniform_values"]

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
MIX_1, MIX_2 = -4658895280553007687, -7723592293110705685  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
FACTORS = torch.tensor((GOLDEN, MIX_1, MIX_2), device="cpu").unbind()  # as tensors: Python's numbers cost a third more a call
SHIFTS = {places: torch.tensor((places, (1 << (64 - places)) - 1), device="cpu").unbind() for places in (27, 30, 31)}
MASK_64 = (1 << 64) - 1
QUANTUM = 1e-4  # largest relative error of a probability that 16 bits may make; beyond it 32 bits are used


def derive_seed(*parts: int) -> int:
    """Hash whole numbers, in order, to a seed of 63 bits."""
    state = 0
    for part in parts:
        state = _mix_int((state + (part & MASK_64) + (GOLDEN & MASK_64)) & MASK_64)
    return state >> 1


@final
class CallKeys:
    """The keys of the random calls of one step, by their number: drawn in order from a generator that is seeded by the step."""

    def __init__(self, seed: int) -> None:
        """Start with no key drawn."""
        self._generator = torch.Generator().manual_seed(seed)
        self._keys: list[int] = []

    def __getitem__(self, number: int) -> int:
        """Return the key of a call."""
        while len(self._keys) <= number:
            self._keys.append(int(torch.randint(0, 2**63 - 1, (), generator=self._generator)))
        return self._keys[number]


def bernoulli_mask(key: int, ids: Tensor, count: int, probability: float) -> Tensor:
    """Draw booleans of shape ``(len(ids), count)``, true with ``probability``."""
    if not 0 < probability < 1:
        return torch.full((len(ids), count), probability >= 1, dtype=torch.bool, device=ids.device)
    threshold = round(probability * 65536)
    if abs(threshold / 65536 - probability) <= QUANTUM * min(probability, 1 - probability):
        lanes = _words(key, ids, -(-count // 4)).view(torch.int16)
        return lanes[:, :count] < threshold - 32768
    lanes = _words(key, ids, -(-count // 2)).view(torch.int32)
    return lanes[:, :count].to(torch.int64) < round(probability * 2**32) - 2**31


def uniform_values(key: int, ids: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Draw numbers in [0, 1) of shape ``(len(ids), count)``, with as many bits as the type has: none rounds to 1.

    53 bits in float64, 24 in float32, 11 in float16, 8 in bfloat16; 16-bit types as float32 numbers that they can hold.
    """
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    words = _words(key, ids, count)
    shifted = words.bitwise_right_shift_(64 - bits).bitwise_and_((1 << bits) - 1)
    return shifted.to(torch.float64 if dtype == torch.float64 else torch.float32).mul_(2.0**-bits)


def normal_values(key: int, ids: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Draw standard normal numbers of shape ``(len(ids), count)`` (Box and Muller, 1958)."""
    pairs = uniform_values(key, ids, 2 * count, dtype)
    radius = (-2 * torch.log1p(-pairs[:, :count])).sqrt()
    return radius * torch.cos(2 * math.pi * pairs[:, count:])


def _words(key: int, ids: Tensor, count: int) -> Tensor:
    states = _mix((ids * FACTORS[0]).add_(key))
    return _mix(states[:, None] + torch.arange(1, count + 1, device=ids.device).mul_(FACTORS[0]))


def _mix(words: Tensor) -> Tensor:
    """Mix in place: with one temporary tensor rather than twelve it takes half the time."""
    room = torch.empty_like(words)
    words.bitwise_xor_(_shifted(words, 30, room)).mul_(FACTORS[1])
    words.bitwise_xor_(_shifted(words, 27, room)).mul_(FACTORS[2])
    return words.bitwise_xor_(_shifted(words, 31, room))


def _shifted(words: Tensor, places: int, into: Tensor) -> Tensor:
    """Shift int64 numbers as if they had no sign, which the mask takes off."""
    count, mask = SHIFTS[places]
    return torch.bitwise_right_shift(words, count, out=into).bitwise_and_(mask)


def _mix_int(word: int) -> int:
    word = ((word ^ (word >> 30)) * (MIX_1 & MASK_64)) & MASK_64
    word = ((word ^ (word >> 27)) * (MIX_2 & MASK_64)) & MASK_64
    return word ^ (word >> 31)
