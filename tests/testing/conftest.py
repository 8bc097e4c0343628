import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
