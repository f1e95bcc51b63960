"""For tests on models of a few thousand weights: more than one thread only makes them wait for each other.

A folder asks for it by importing the fixture in its conftest.
"""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread_for_the_module():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
