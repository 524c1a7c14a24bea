"""Parameters and cost compared with counts by hand, and with the model itself."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from airstreams.config import ClipConfig, Config, FlowConfig, LossWeights, ModelConfig
from airstreams.models import flow, tvl1
from airstreams.models.airstreams import build
from airstreams.models.cost import count
from airstreams.towers import Block, Layer

# Operations per element of an operator's result.
ARITHMETIC = dict.fromkeys(("add", "sub", "mul", "div", "pow", "square", "sqrt", "rsub", "neg", "lt", "reciprocal"), 1)
ARITHMETIC |= {"clamp": 2, "addcmul": 2}


class ElementwiseOperations(TorchDispatchMode):
    """Counts the operations of arithmetic operators on tensors of pixels."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name in ARITHMETIC and out.numel() > 1:
            self.total += ARITHMETIC[name] * out.numel()
        return out


def default(streams=("rgb", "flow", "semantic"), **loss_weights):
    return Config(model=ModelConfig(streams=list(streams)), loss_weights=LossWeights(**loss_weights))


def test_the_cost_of_a_small_model_is_the_one_counted_by_hand():
    pixel_wise = Block(8, [Layer("conv2d", kernel=1)], skip=False)
    config = Config(
        clip=ClipConfig(frames=2, size=64),
        model=ModelConfig(streams=["rgb"], tower=[pixel_wise] * 3 + [Block(16, pixel_wise.layers, skip=False)] * 3),
    )
    cost = count(config, classes=5, segment_classes=3)
    pixels = 2 * 64 * 64
    early, late = 3 * 8 + 8 * 8 + 8 * 8, 8 * 16 + 16 * 16 + 16 * 16
    assert cost.inference == {"rgb.early": pixels * early, "rgb.late": pixels * late + 16 * 5}
    norms = 2 * (3 + 3 * 8 + 8), 2 * (3 * 16)
    assert cost.parameters == {"rgb.early": early + norms[0], "rgb.late": late + norms[1] + 16 * 5 + 5}


def test_convolutions_cost_outputs_times_kernels():
    plain = Block(8, [Layer("conv2d", kernel=1)], skip=False)
    strided = Block(8, [Layer("conv2d", kernel=3, stride=2), Layer("conv1d", kernel=5, stride=2)], skip=False)
    clip = ClipConfig(frames=4, size=64)
    model = ModelConfig(streams=["rgb"], tower=[plain] * 2 + [strided] + [plain] * 3)
    cost = count(Config(clip=clip, model=model), classes=2, segment_classes=3)
    by_hand = 4 * 64 * 64 * (3 * 8 + 8 * 8) + 4 * 32 * 32 * 9 * 8 * 8 + 2 * 32 * 32 * 5 * 8 * 8
    assert cost.inference["rgb.early"] == by_hand


@pytest.mark.parametrize("streams", [["rgb"], ["flow", "semantic"], ["rgb", "flow", "semantic"]])
def test_the_parts_have_all_parameters(streams):
    cost = count(default(streams), classes=21, segment_classes=81)
    with torch.device("meta"):
        model = build(ModelConfig(streams=streams), classes=21, segment_classes=81)
    model.keep_heads(default(streams).trained_heads())
    assert sum(cost.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_the_default_model_stays_within_the_papers_17_giga_multiply_adds():
    cost = count(default(), classes=51, segment_classes=81)
    assert 12e9 < sum(cost.inference.values()) <= 17e9
    assert cost.inference["semantic.representation"] == pytest.approx(16 * 0.76e9, rel=0.03)


def test_training_adds_the_late_towers_of_heads_with_weight():
    cost = count(default(rgb=1, flow=0, semantic=0.5), classes=51, segment_classes=81)
    late = cost.inference["merged.late"]
    assert late > 0
    more = {name: cost.training[name] - cost.inference[name] for name in cost.training}
    assert {name: value for name, value in more.items() if value} == {"rgb.late": late, "semantic.late": late}
    assert "flow.late" not in cost.training | cost.parameters


def test_the_mean_of_heads_costs_their_late_towers_at_inference():
    config = default(rgb=1, flow=0, semantic=0.5)
    cost = count(replace(config, model=replace(config.model, answer="mean")), classes=51, segment_classes=81)
    assert cost.inference == cost.training
    assert cost.parameters_at_inference == sum(cost.parameters.values())


def test_a_second_later_merge_costs_only_training():
    one, two = (
        count(Config(model=ModelConfig(streams=["rgb", "flow"], merge_levels=levels)), 51, 81)
        for levels in ([3], [3, 6])
    )
    assert sum(two.inference.values()) == sum(one.inference.values())
    # Blocks 4 to 6 of flow and the classifier of the late fusion now run too. Together they cost one late tower.
    assert sum(two.training.values()) == sum(one.training.values()) + one.inference["merged.late"]


def test_parameters_at_inference_exclude_blocks_that_only_train():
    model = ModelConfig(streams=["rgb", "flow"], width=0.5)
    one = count(Config(model=model), 4, 2)
    three = count(Config(model=replace(model, merge_levels=[3, 1, 5])), 4, 2)
    trained_alone = one.parameters["rgb.late"]
    assert one.parameters_at_inference == sum(one.parameters.values()) - trained_alone
    assert 0 < three.parameters_at_inference - one.parameters_at_inference < 200  # the normalisations after block 1
    assert sum(three.parameters.values()) > 1.4 * sum(one.parameters.values())


def test_one_stream_costs_what_it_costs_among_others():
    alone = count(default(["flow"]), classes=51, segment_classes=81)
    among = count(default(flow=1), classes=51, segment_classes=81)
    assert alone.inference == {name: among.training[name] for name in among.training if name.startswith("flow.")}
    assert alone.inference == alone.training


@pytest.mark.slow
def test_the_flow_layer_costs_the_operations_that_it_runs(monkeypatch):
    def operations(iterations):
        monkeypatch.setattr(flow, "iterate", tvl1.unrolled)  # the counter sees only one operator in the usual form
        with ElementwiseOperations() as counter, torch.no_grad():
            flow.RepresentationFlow(iterations)(torch.rand(1, 1, 2, 112, 112))
        return counter.total

    one_more = operations(6) - operations(5)
    assert one_more / 112**2 == pytest.approx(flow.PRIMAL_OPERATIONS + flow.DUAL_OPERATIONS, rel=0.015)

    def flow_cost(iterations, frames, **options):
        flow_config = FlowConfig(iterations=iterations, **options)
        tower = [Block(8, [Layer("conv2d", kernel=1)], skip=False)] * 3
        model = ModelConfig(streams=["flow"], flow=flow_config, tower=tower)
        config = Config(clip=ClipConfig(frames=frames), model=model)
        return count(config, classes=2, segment_classes=2).inference["flow.representation"]

    # An operation is half a multiply-add; T frames make T - 1 pairs.
    assert flow_cost(6, 16) - flow_cost(5, 16) == pytest.approx(15 * one_more / 2, rel=0.015)
    grey = 3 * 112**2  # per frame
    assert flow_cost(5, 16) - 16 * grey == 15 * (flow_cost(5, 2) - 2 * grey)
    assert flow_cost(20, 2) == pytest.approx(operations(20) / 2, rel=0.05)
    a_solve = flow_cost(20, 2) - 2 * grey
    assert flow_cost(20, 2, warps=3) - 2 * grey == 3 * a_solve
    assert flow_cost(20, 2, levels=3, warps=1) - 2 * grey == a_solve * (1 + 1 / 4 + 1 / 16)
