"""What a request is said to have cost."""

from types import SimpleNamespace

from scumble.serve.extension import cached_tokens


def test_a_prompt_counts_as_cached_once_whatever_its_number_of_answers():
    """The first of several answers encodes what the others find, so it says what was there before the request."""
    jobs = [SimpleNamespace(prompt=prompt) for prompt in ((1, 2, 3), (1, 2, 3), (4, 5))]
    found = [SimpleNamespace(cached_tokens=count) for count in (1, 3, 2)]
    assert cached_tokens(jobs, found) == 1 + 2
    assert cached_tokens(jobs, []) == 0
