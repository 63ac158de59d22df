"""Random numbers as a hash of (key, sample, element): the same however the samples are cut.

Each sample has a 64-bit state, from which a counter-based generator (splitmix64: Steele, Lea and Flood, 2014) gives one
64-bit word an element or one for several. Integers wrap around in int64 on every device, so every device draws the same.

k key of a random call, i sample (its position in the effective batch), j word of the sample.
States depend on k and i, words on the state and j, so the states of a whole effective batch are computed together.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "Words",
    "bernoulli_mask",
    "call_keys",
    "derive_seed",
    "draw_words",
    "normal_values",
    "sample_states",
    "shared_state",
    "uniform_values",
]

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
MIX_1, MIX_2 = -4658895280553007687, -7723592293110705685  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
FACTORS = torch.tensor((GOLDEN, MIX_1, MIX_2), device="cpu").unbind()  # as tensors: Python's numbers cost a third more a call
SHIFTS = {places: torch.tensor((places, (1 << (64 - places)) - 1), device="cpu").unbind() for places in (27, 30, 31)}
MASK_64 = (1 << 64) - 1
QUANTUM = 1e-4  # largest relative error of a probability that 16 bits may make; beyond it 32 bits are used

Words = Callable[[int], Tensor]
"""Returns so many new 64-bit words of each sample, shape ``(n, count)``."""


def derive_seed(*parts: int) -> int:
    """Hash whole numbers, in order, to a seed of 63 bits."""
    state = 0
    for part in parts:
        state = _mix_int((state + (part & MASK_64) + (GOLDEN & MASK_64)) & MASK_64)
    return state >> 1


def call_keys(seed: int, count: int) -> Tensor:
    """Return the keys of the first ``count`` random calls of a step, shape ``(count,)``; more calls do not change them."""
    return torch.randint(0, 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def sample_states(keys: Tensor, ids: Tensor) -> Tensor:
    """Return the states of samples in random calls, shape ``(len(keys), len(ids))``."""
    return _mix((ids * FACTORS[0]) + keys.unsqueeze(1))


def shared_state(key: Tensor) -> Tensor:
    """Return the state of a call that all samples share, shape ``(1,)``: that of the sample at position 0."""
    return _mix(key.reshape(1).clone())


def draw_words(states: Tensor, count: int) -> Tensor:
    """Return the first ``count`` words of each state, shape ``(len(states), count)``."""
    return _mix(torch.arange(1, count + 1, device=states.device).mul_(FACTORS[0]) + states.unsqueeze(1))


def bernoulli_mask(words: Words, count: int, probability: float) -> Tensor:
    """Draw booleans of shape ``(n, count)``, true with ``probability``."""
    if not 0 < probability < 1:
        return words(0).new_full((len(words(0)), count), probability >= 1, dtype=torch.bool)
    threshold = round(probability * 65536)
    if abs(threshold / 65536 - probability) <= QUANTUM * min(probability, 1 - probability):
        lanes = words(-(-count // 4)).view(torch.int16)
        return lanes[:, :count] < threshold - 32768
    lanes = words(-(-count // 2)).view(torch.int32)
    return lanes[:, :count].to(torch.int64) < round(probability * 2**32) - 2**31


def uniform_values(words: Words, count: int, dtype: torch.dtype) -> Tensor:
    """Draw numbers in [0, 1) of shape ``(n, count)``, with as many bits as the type has: none rounds to 1.

    53 bits in float64, 24 in float32, 11 in float16, 8 in bfloat16; 16-bit types as float32 numbers that they can hold.
    """
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    shifted = words(count).bitwise_right_shift_(64 - bits).bitwise_and_((1 << bits) - 1)
    return shifted.to(torch.float64 if dtype == torch.float64 else torch.float32).mul_(2.0**-bits)


def normal_values(words: Words, count: int, dtype: torch.dtype) -> Tensor:
    """Draw standard normal numbers of shape ``(n, count)`` (Box and Muller, 1958)."""
    pairs = uniform_values(words, 2 * count, dtype)
    radius = (-2 * torch.log1p(-pairs[:, :count])).sqrt()
    return radius * torch.cos(2 * math.pi * pairs[:, count:])


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
