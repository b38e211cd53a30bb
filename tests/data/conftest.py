"""What the tests of the data share: the check of an error that a person reads."""

from collections.abc import Callable

import pytest

from irf_lib.files import InputError


@pytest.fixture
def refused() -> Callable:
    """The call raises one error of this kind: a single line that holds all of the words."""

    def check(words: str, function: Callable, *arguments, kind: type[Exception] = InputError) -> None:
        with pytest.raises(kind) as caught:
            function(*arguments)
        text = str(caught.value)
        assert "\n" not in text and not [word for word in words.split() if word not in text], text

    return check
