"""Which recordings are made and kept. What one does, tests/test_gpu.py shows where there is a GPU."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from styleapp.models import recorded
from styleapp.models.recorded import Recordings, layout


class Replayed:
    """In the place of a recording: calls the function, and counts what was made."""

    made: list[tuple[object, ...]]

    def __init__(self, run, *example):
        if example[0].numel() == 7:
            raise RuntimeError("this cannot be recorded")
        if example[0].numel() == 9:
            raise torch.cuda.OutOfMemoryError("none left")
        self.run = run
        self.made.append(layout(*example))

    def __call__(self, *tensors):
        return self.run(*tensors)


@pytest.fixture
def recordings(monkeypatch) -> Recordings:
    Replayed.made = []
    monkeypatch.setattr(recorded, "Recorded", Replayed)
    return Recordings(torch.device("cpu"), most=2)


def doubled(x):
    return 2 * x


def test_what_comes_once_is_not_recorded(recordings):
    for size in range(1, 7):
        assert torch.equal(recordings.run("a", doubled, torch.ones(size)), torch.full((size,), 2.0))
    assert not Replayed.made


def test_what_comes_again_is_recorded_once(recordings):
    for value in range(4):
        assert recordings.run("a", doubled, torch.tensor([float(value)])) == 2 * value
    assert len(Replayed.made) == 1
    recordings.run("b", doubled, torch.ones(1))  # another function, another dtype: not yet
    recordings.run("a", doubled, torch.ones(1, dtype=torch.float64))
    assert len(Replayed.made) == 1


def test_those_used_last_are_kept(recordings):
    for size in (1, 1, 2, 2, 1, 3, 3):  # 2 goes for 3
        recordings.run("a", doubled, torch.ones(size))
    assert len(Replayed.made) == 3
    recordings.run("a", doubled, torch.ones(1))
    assert len(Replayed.made) == 3
    recordings.run("a", doubled, torch.ones(2))
    assert len(Replayed.made) == 4
    recordings.clear()
    recordings.run("a", doubled, torch.ones(2))
    assert len(Replayed.made) == 4


def test_what_cannot_be_recorded_is_done_all_the_same(recordings):
    for _ in range(3):
        assert torch.equal(recordings.run("a", doubled, torch.ones(7)), torch.full((7,), 2.0))
    recordings.run("a", doubled, torch.ones(9))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        recordings.run("a", doubled, torch.ones(9))


def test_threads_share_them(recordings):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: float(recordings.run("a", doubled, torch.tensor([float(i)]))), range(40)))
    assert found == [2.0 * i for i in range(40)] and len(Replayed.made) == 1
