from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smidgen.randomness import MOST_SEED, Purpose, Stream

seeds = st.integers(0, MOST_SEED)
streams = st.builds(Stream, seeds, st.sampled_from(Purpose), st.integers(0, 99), st.integers(0, 9999))


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as its paper gives it, to hold numpy's against."""
    mask = 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ key[0],
            second & mask,
            (first >> 64) ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_the_reference_agrees_with_the_published_vector() -> None:
    """From the known-answer tests of the paper's authors (Random123): all words zero."""
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip


@given(streams)
def test_the_words_are_philox_of_purpose_and_place(stream: Stream) -> None:
    # numpy counts up before each block, so position 1 comes first.
    expected = [
        word
        for position in (1, 2)
        for word in philox([position, stream.step, stream.epoch, 0], [stream.seed, int(stream.purpose)])
    ]
    assert stream.words(8).tolist() == expected
    assert stream.words(3).tolist() == expected[:3]


@given(streams, streams)
def test_streams_differ_unless_they_are_equal(one: Stream, other: Stream) -> None:
    assert (one.words(2).tolist() == other.words(2).tolist()) == (one == other)


@given(streams, st.integers(0, 2000))
def test_a_permutation_holds_each_number_once(stream: Stream, count: int) -> None:
    assert sorted(stream.permutation(count).tolist()) == list(range(count))


@given(seeds)
def test_uniforms_are_in_range(seed: int) -> None:
    draws = Stream(seed, Purpose.AUGMENTATION, 3, 4).uniforms(5, 7)
    assert draws.shape == (5, 7)
    assert draws.min() >= 0
    assert draws.max() < 1


def test_uniforms_are_uniform() -> None:
    draws = Stream(0, Purpose.ORDER).uniforms(200_000)
    assert abs(draws.mean() - 0.5) < 0.003
    counts = np.bincount((draws * 10).astype(int), minlength=10)
    assert counts.min() > 19_000


def test_epochs_are_ordered_differently() -> None:
    orders = [tuple(Stream(0, Purpose.ORDER, epoch).permutation(100)) for epoch in range(1, 6)]
    assert len(set(orders)) == 5
