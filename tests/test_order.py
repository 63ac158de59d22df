import numpy as np

from bigstep.data.augmentation import augment
from bigstep.data.order import effective_batches, epoch_order
from bigstep.data.seeding import derive_key, random_bits
from conftest import random_images


def test_the_order_is_a_permutation_of_seed_and_epoch_alone() -> None:
    order = epoch_order(100, seed=3, epoch=5)
    assert sorted(order) == list(range(100))
    assert (order == epoch_order(100, seed=3, epoch=5)).all()
    assert (order != epoch_order(100, seed=3, epoch=6)).any()
    assert (order != epoch_order(100, seed=4, epoch=5)).any()


def test_effective_batches_hold_every_sample_once_the_last_what_is_left() -> None:
    batches = list(effective_batches(np.arange(10), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert np.concatenate(batches).tolist() == list(range(10))


def test_augmentation_does_not_depend_on_the_neighbours() -> None:
    images, ids = random_images(20, 16, 3), np.arange(100, 120)
    whole = augment(images, ids, "shift-flip", seed=0, epoch=2)
    for part in (slice(0, 7), slice(7, 20), slice(5, 6)):
        assert (augment(images[part], ids[part], "shift-flip", seed=0, epoch=2) == whole[part]).all()
    assert (whole != augment(images, ids, "shift-flip", seed=0, epoch=3)).any()


def test_each_kind_does_what_it_is_called() -> None:
    images, ids = random_images(200, 16, 1) | 1, np.arange(200)
    assert (augment(images, ids, "none", 0, 0) == images).all()
    flipped = augment(images, ids, "flip", 0, 0)
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert 70 < mirrored.sum() < 130
    assert (flipped[~mirrored] == images[~mirrored]).all()
    shifted = augment(images, ids, "shift", 0, 0)
    assert not (shifted == images).all()
    for image, moved in zip(images, shifted, strict=True):
        places = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if (np.roll(image, (down, right), (0, 1))[moved > 0] == moved[moved > 0]).all()
        ]
        assert places, "no shift by up to an eighth explains the image"


def test_random_words_are_spread_evenly() -> None:
    words = random_bits(derive_key("test"), np.arange(2000), 8)
    assert words.shape == (2000, 8)
    shares = words.astype(np.float64) / 2**64
    assert abs(shares.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(shares[:, 0], shares[:, 1])[0, 1]) < 0.06
    assert abs(np.corrcoef(shares[:-1, 0], shares[1:, 0])[0, 1]) < 0.06


def test_keys_tell_their_parts_apart() -> None:
    assert len({derive_key("a", 1, 2), derive_key("a", 12), derive_key("a", 2, 1), derive_key("b", 1, 2)}) == 4
