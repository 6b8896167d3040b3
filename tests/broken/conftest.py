"""One tiny policy and one reward model for all broken inputs."""

import pytest
import tiny
from broken.kitchen import Kitchen
from recipes.running import reward


@pytest.fixture(scope="session")
def pantry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pantry")
    return tiny.llama(folder / "base"), reward(folder)


@pytest.fixture
def kitchen(tmp_path, pantry):
    return Kitchen(tmp_path, *pantry)
