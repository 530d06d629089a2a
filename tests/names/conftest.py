from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from names.authority import Authority
from turning import Turning, turning
from twisted.internet.task import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    yield made
    assert [] == made.getDelayedCalls()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))
