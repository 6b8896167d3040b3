"""What every test runs under: no network, one thread, shapes checked at run time, the same draws every time."""

import os
import sys
from pathlib import Path

# Before torch and the hub library are imported: both read the environment once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

torch.set_num_threads(1)

# Shape strings such as Float[Tensor, "B T"] become checks, for every caller in the suite; an int is a fine float.
install_import_hook("keel.functional", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=30)
settings.register_profile("mutants", settings.get_profile("suite"), max_examples=12,
                          phases=[Phase.explicit, Phase.generate])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with public data sets and models, which the repository does not hold."""
    folder = Path(os.environ.get("KEEL_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set KEEL_SHARED to the folder that has it")
    return folder
