"""Tensors of a few thousand numbers: more than one thread only makes them wait for each other."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread_for_the_module():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
