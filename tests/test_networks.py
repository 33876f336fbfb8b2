"""Networks against the published parameter counts, widths and costs, and against plain torch layers."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import vgg16_bn

from dd_plugins import registry
from dd_plugins.api import ConfigError, Network, UnknownPluginError, UsageError
from dd_plugins.networks import build_network, count_parameters, plain_layers

RGB, TINY, GREY = (3, 32, 32), (3, 64, 64), (1, 28, 28)
COLUMNS = {"10": (RGB, 10), "100": (RGB, 100), "tiny": (TINY, 200), "grey": (GREY, 10)}

D3 = {"10": 320_010, "100": 504_420, "tiny": 1_938_120, "grey": 317_706}
VGG = {"10": 9_231_114, "100": 9_277_284, "grey": 9_229_962}
RESNET = {"10": 11_173_962, "100": 11_220_132, "grey": 11_172_810}
# name, settings, and the parameters of each published column
PARAMETERS = [
    ("convnet", {"depth": 3}, D3),
    ("convnet", {"depth": 3, "norm": "batch"}, D3),
    ("convnet", {"depth": 3, "norm": "group"}, D3),
    ("convnet", {"depth": 4}, {"10": 452_490, "100": 498_660, "tiny": 857_160, "grey": 450_186}),
    ("convnet", {"depth": 1}, {"10": 331_530, "100": 3_280_740, "tiny": 26_218_440, "grey": 329_226}),
    ("convnet", {"depth": 2}, {"10": 233_610, "100": 970_980, "tiny": 6_705_480, "grey": 231_306}),
    ("convnet", {"width": 32}, {"10": 24_714}),
    ("convnet", {"width": 64}, {"10": 86_282}),
    ("convnet", {"width": 256}, {"10": 1_229_834}),
    ("convnet", {"norm": "layer"}, {"10": 663_306}),
    ("convnet", {"norm": "none"}, {"10": 319_242}),
    ("convnet", {"pooling": "none"}, {"10": 1_610_250}),
    ("alexnet", {}, {"10": 1_872_202, "100": 2_148_772, "grey": 1_865_802}),
    ("vgg11", {"norm": "instance"}, VGG),
    ("vgg11", {"norm": "batch"}, VGG),
    ("vgg16", {"norm": "instance"}, {"10": 14_728_266}),
    ("densenet-idc", {"norm": "batch"}, {"10": 1_000_618}),
    ("resnet18", {"norm": "instance"}, RESNET),
    ("resnet18", {"norm": "batch"}, RESNET),
    ("resnet18-ap", {"norm": "batch"}, {"10": 11_250_762, "100": 11_988_132, "grey": 11_213_770}),
    ("alexnet", {"norm": "batch"}, {"10": 1_872_202 + 1_920}),
    ("mlp", {}, {"10": 411_146, "100": 422_756, "grey": 118_282}),
    ("lenet", {}, {"10": 62_006, "100": 69_656, "grey": 61_706}),
]
# name, settings, column, width of the embedding
EMBEDDINGS = [
    *(
        ("convnet", {"depth": 3}, column, width)
        for column, width in zip(COLUMNS, (2048, 2048, 8192, 2048), strict=True)
    ),
    *(("convnet", {"depth": 4}, column, width) for column, width in zip(COLUMNS, (512, 512, 2048, 512), strict=True)),
    ("convnet", {"depth": 1}, "10", 128 * 16 * 16),
    ("convnet", {"pooling": "none"}, "10", 128 * 32 * 32),
    ("alexnet", {}, "10", 192 * 16),
    ("vgg11", {}, "grey", 512),
    ("resnet18", {}, "grey", 512),
    ("vgg16", {}, "10", 512),
    ("densenet121", {}, "10", 1024),
    ("densenet-idc", {}, "10", 384),
]
# name, settings, column, millions of multiply-accumulates as published, and its last digit
COSTS = [
    ("convnet", {}, "10", 50.745344, 1e-9),
    ("convnet", {"depth": 3}, "tiny", 204.5, 0.1),
    ("convnet", {"depth": 4}, "tiny", 212.7, 0.1),
    ("convnet", {}, "grey", 48.4, 0.1),
    ("alexnet", {}, "10", 245, 1),
    ("vgg11", {}, "10", 153, 1),
    ("vgg16", {}, "10", 313, 1),
    ("resnet18", {}, "10", 555, 1),
]
BUILT_IN = [info.name for info in registry.list_plugins("network") if info.distribution == registry.OWN]
VARIANTS = [
    *((name, {}) for name in BUILT_IN),
    ("vgg11", {"norm": "batch"}),
    ("vgg16", {"norm": "batch"}),
    ("resnet18", {"norm": "batch"}),
    ("resnet18-ap", {"norm": "batch"}),
    ("alexnet", {"norm": "batch"}),
    ("densenet121", {"norm": "instance"}),
    ("densenet-idc", {"norm": "instance"}),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On busy cores, threads that wait for each other make these many tiny layers up to a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_meta(name, config, image_shape, num_classes):
    """A network without memory: enough for everything that follows from shapes."""
    with torch.device("meta"):
        return registry.load("network", name)(image_shape, num_classes, config)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "config", "column", "expected"),
    [(name, config, column, count) for name, config, counts in PARAMETERS for column, count in counts.items()],
)
def test_parameter_counts(name, config, column, expected):
    assert count_parameters(on_meta(name, config, *COLUMNS[column])) == expected


@pytest.mark.parametrize(("name", "config", "column", "expected"), EMBEDDINGS)
def test_width_of_the_embedding(name, config, column, expected):
    image_shape, num_classes = COLUMNS[column]
    network = on_meta(name, config, image_shape, num_classes)
    images = torch.empty(2, *image_shape, device="meta")
    assert network.embed(images).shape == (2, expected)
    assert network(images).shape == (2, num_classes)


@pytest.mark.parametrize(("name", "config", "column", "expected", "digit"), COSTS)
def test_multiply_accumulates(name, config, column, expected, digit):
    image_shape, num_classes = COLUMNS[column]
    network = on_meta(name, config, image_shape, num_classes)
    costs = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            costs.append(output[0].numel() * inputs[0].shape[1] * math.prod(module.kernel_size))
        elif isinstance(module, nn.Linear):
            costs.append(output[0].numel() * inputs[0].shape[1])

    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.empty(1, *image_shape, device="meta"))
    assert sum(costs) / 1e6 == pytest.approx(expected, abs=digit / 2 + 1e-9)


@pytest.mark.parametrize("image_shape", [RGB, (1, 8, 8), TINY], ids=str)
@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_forward_is_finite_and_every_parameter_gets_a_gradient(name, config, image_shape):
    network = build_network(name, image_shape, 7, config, seed=0)
    assert network.training
    images = noise(2, *image_shape).requires_grad_()
    logits = network(images)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # no layer has turned all images into the same constants
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    missing = [
        key for key, value in network.named_parameters() if value.grad is None or not value.grad.isfinite().all()
    ]
    assert missing == []
    assert images.grad.flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("side", [8, 9, 15, 17, 20, 33])
@pytest.mark.parametrize("name", BUILT_IN)
def test_images_of_odd_sizes(name, side):
    for image_shape in ((3, side, side), (2, side, side + 5)):
        network = on_meta(name, {}, image_shape, 4)
        assert network(torch.empty(2, *image_shape, device="meta")).shape == (2, 4)


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_logits_are_the_classifier_of_the_embedding(name, config):
    network = build_network(name, (1, 8, 8), 3, config, seed=0).eval()
    images = noise(2, 1, 8, 8)
    assert torch.equal(network.classifier(network.embed(images)), network(images))


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    torch.default_generator.manual_seed(123)
    before = torch.default_generator.get_state()
    first, second, other = (build_network("convnet", (1, 8, 8), 3, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.default_generator.get_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key in ("features.0.0.weight", "classifier.weight", "classifier.bias"):
        assert not torch.equal(first[key], other[key])


def test_weights_are_drawn_on_the_cpu_whatever_the_default_device():
    expected = build_network("convnet", (1, 8, 8), 3, seed=0)
    with torch.device("meta"):
        found = build_network("convnet", (1, 8, 8), 3, seed=0)
    assert torch.equal(found.classifier.weight, expected.classifier.weight)
    assert build_network("convnet", (1, 8, 8), 3, seed=0, device="meta").classifier.weight.is_meta


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_initial_weights_keep_the_frameworks_bounds(name):
    for module in build_network(name, RGB, 10, seed=0).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert module.bias is None or 0 < module.bias.abs().max() <= bound
        elif isinstance(module, nn.GroupNorm):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


def average():
    return nn.AvgPool2d(2, 2)


PLAIN = [  # image shape, settings, and the same as: depth, width, first padding, norm, activation, pooling
    (RGB, {}, (3, 128, 1, lambda: nn.GroupNorm(128, 128), nn.ReLU, average)),
    (GREY, {"width": 8}, (3, 8, 3, lambda: nn.GroupNorm(8, 8), nn.ReLU, average)),
    ((1, 8, 8), {"depth": 1, "norm": "batch"}, (1, 128, 1, lambda: nn.BatchNorm2d(128), nn.ReLU, average)),
    (
        (1, 16, 16),
        {"depth": 2, "width": 8, "norm": "group", "activation": "swish", "pooling": "max"},
        (2, 8, 1, lambda: nn.GroupNorm(4, 8), nn.SiLU, lambda: nn.MaxPool2d(2, 2)),
    ),
    (
        (3, 4, 4),
        {"depth": 2, "width": 4, "norm": "none", "activation": "sigmoid", "pooling": "none"},
        (2, 4, 1, nn.Identity, nn.Sigmoid, nn.Identity),
    ),
    (
        (3, 8, 8),
        {"depth": 1, "norm": "layer", "activation": "leakyrelu"},
        (1, 128, 1, lambda: nn.LayerNorm((128, 8, 8)), lambda: nn.LeakyReLU(0.01), average),
    ),
]


@pytest.mark.parametrize(("image_shape", "config", "parts"), PLAIN)
def test_convnet_equals_a_plain_sequential(image_shape, config, parts):
    depth, width, padding, norm, activation, pooling = parts
    channels, layers = image_shape[0], []
    for block in range(depth):
        layers += [nn.Conv2d(channels, width, 3, 1, padding if block == 0 else 1), norm(), activation(), pooling()]
        channels = width
    plain = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 5))
    network = build_network("convnet", image_shape, 5, config, seed=1)
    with torch.no_grad():
        for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
            ours.add_(noise(*ours.shape, seed=2), alpha=0.05)  # so that the norms' weights differ from 1 and 0
            theirs.copy_(ours)
    images = noise(3, *image_shape)
    torch.testing.assert_close(network(images), plain(images))
    torch.testing.assert_close(network.embed(images), plain[:-1](images))


@pytest.mark.parametrize(("side", "depth"), [(8, 2), (16, 2), (32, 3), (33, 4), (64, 4), (128, 5), (256, 6)])
def test_default_depth_follows_the_image_size(side, depth):
    assert len(on_meta("convnet", {}, (3, side, side), 2).features) == depth


@pytest.mark.parametrize("name", ["convnet", "vgg11", "resnet18"])
def test_instance_norm_sees_one_image_alone(name):
    network = build_network(name, (1, 8, 8), 3, seed=0)
    images, others = noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1)
    others[1] = images[1]
    torch.testing.assert_close(network(images)[1], network(others)[1])
    torch.testing.assert_close(network(images)[1], network.eval()(images[1:2])[0])


def test_plain_layers_are_out_of_place_and_normalise_as_told():
    body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    plain_layers(body, "batch")
    assert isinstance(body[1], nn.BatchNorm2d)
    assert not body[2].inplace
    plain_layers(body, "instance")
    expected = nn.InstanceNorm2d(6, affine=True)
    torch.testing.assert_close(body[1](noise(2, 6, 5, 5)), expected(noise(2, 6, 5, 5)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "gelu"}, r"network\.activation = 'gelu'.*swish"),
        ({"norms": "batch"}, r"network\.norms; did you mean norm"),
        ({"width": 0}, r"network\.width = 0"),
        ({"width": 6, "norm": "group"}, "width that 4 divides, but got 6"),
        ({"depth": 4}, r"network\.depth = 4.*8 px can be halved at most 3 times"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_network("convnet", (1, 8, 8), 10, config, seed=0)
    assert isinstance(caught.value, UsageError)


def test_a_default_depth_that_does_not_fit_says_so():
    with pytest.raises(ConfigError, match=r"\(2 blocks\): a map of 2 px can be halved at most 1 times"):
        build_network("convnet", (3, 2, 2), 10, seed=0)
    assert len(build_network("convnet", (3, 2, 2), 10, {"pooling": "none", "width": 4}, seed=0).features) == 2


def test_unknown_networks_are_named():
    with pytest.raises(UnknownPluginError, match="did you mean convnet"):
        build_network("convnt", RGB, 10, seed=0)


@pytest.mark.parametrize(
    ("side", "patch", "tokens"), [(8, 2, 16), (28, 4, 49), (32, 4, 64), (64, 8, 64), (128, 16, 64)]
)
def test_patches_of_the_transformer(side, patch, tokens):
    network = on_meta("vit", {}, (3, side, side), 10)
    assert network.features.project.kernel_size == (patch, patch)
    assert network.features.encoder.pos_embedding.shape == (1, tokens + 1, 512)
    block = 2 * (2 * 512) + 4 * 512 * 512 + 4 * 512 + 2 * (512 * 512 + 512)  # norms, attention, perceptron
    around = 3 * patch**2 * 512 + 512 + 512 + (tokens + 1) * 512 + 2 * 512 + 512 * 10 + 10
    assert count_parameters(network) == 6 * block + around


def test_the_transformer_draws_nothing_when_it_runs_and_pads_with_zeros():
    network = build_network("vit", (1, 7, 9), 3, {"width": 16, "heads": 2, "depth": 1, "patch": 4}, seed=0)
    images, before = noise(2, 1, 7, 9), torch.get_rng_state()
    logits = network(images)
    assert torch.equal(before, torch.get_rng_state())
    wide = torch.zeros(2, 1, 8, 12)
    wide[:, :, :7, :9] = images
    patches = nn.functional.unfold(wide, 4, stride=4).transpose(1, 2)  # an independent way to cut patches
    project = network.features.project
    tokens = patches @ project.weight.flatten(1).T + project.bias
    whole = torch.cat([network.features.token.expand(2, -1, -1), tokens], dim=1)
    torch.testing.assert_close(network.classifier(network.features.encoder(whole)[:, 0]), logits)
    with pytest.raises(ConfigError, match="3 heads do not divide a width of 16"):
        build_network("vit", (1, 8, 8), 3, {"width": 16, "heads": 3}, seed=0)


def test_average_pools_stand_where_strides_were():
    network = build_network("resnet18-ap", (3, 16, 16), 5, seed=0)
    body, images = network.features, noise(2, 3, 16, 16)
    relu, pool = nn.functional.relu, lambda maps: nn.functional.avg_pool2d(maps, 2)
    maps = relu(body.bn1(nn.functional.conv2d(images, body.conv1.weight, padding=1)))
    for number, stage in enumerate((body.layer1, body.layer2, body.layer3, body.layer4)):
        for position, block in enumerate(stage):
            halved = number > 0 and position == 0
            conv2 = block.conv2[1] if halved else block.conv2
            inner = relu(block.bn1(nn.functional.conv2d(maps, block.conv1.weight, padding=1)))
            inner = nn.functional.conv2d(pool(inner) if halved else inner, conv2.weight, padding=1)
            short = maps
            if halved:
                short = block.downsample[2](pool(nn.functional.conv2d(maps, block.downsample[0].weight)))
            maps = relu(block.bn2(inner) + short)
    assert maps.shape == (2, 512, 2, 2)
    torch.testing.assert_close(network(images), network.classifier(maps.flatten(1)))


@pytest.mark.parametrize("classes", [10, 100])
def test_parameters_of_the_densenets_are_those_of_their_layers(classes):
    for name, growth, extra in (("densenet121", 32, 2 * 64), ("densenet-idc", 12, 0)):  # a norm after the stem, or none
        channels = 2 * growth
        count = 27 * channels + extra
        for block, layers in enumerate((6, 12, 24, 16)):
            for _ in range(layers):  # norm, 1x1 to four times the growth rate, norm, 3x3 to the growth rate
                count += 2 * channels + channels * 4 * growth + 2 * 4 * growth + 9 * 4 * growth * growth
                channels += growth
            if block < 3:  # norm, 1x1 to half the channels
                count += 2 * channels + channels * (channels // 2)
                channels //= 2
        count += 2 * channels + channels * classes + classes
        assert count_parameters(on_meta(name, {}, RGB, classes)) == count


def test_the_convolutions_of_vgg16_are_those_of_torchvision():
    with torch.device("meta"):
        theirs = vgg16_bn()
    ours = on_meta("vgg16", {"norm": "batch"}, RGB, 10)
    shapes = [[tuple(p.shape) for p in net.features.parameters()] for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert count_parameters(ours) == sum(map(math.prod, shapes[1])) + 512 * 10 + 10


def test_the_small_densenet_layer_by_layer():
    network, images = build_network("densenet-idc", (3, 16, 16), 5, {"norm": "instance"}, seed=0), noise(2, 3, 16, 16)
    layers = network.features.features

    def active(norm, maps):
        return nn.functional.relu(nn.functional.instance_norm(maps, weight=norm.weight, bias=norm.bias))

    maps = nn.functional.conv2d(images, layers.conv0.weight, padding=1)
    for number in (1, 2, 3, 4):
        for layer in layers.get_submodule(f"denseblock{number}").children():
            inner = nn.functional.conv2d(active(layer.norm1, maps), layer.conv1.weight)
            inner = nn.functional.conv2d(active(layer.norm2, inner), layer.conv2.weight, padding=1)
            maps = torch.cat([maps, inner], 1)
        if number < 4:
            transition = layers.get_submodule(f"transition{number}")
            maps = nn.functional.conv2d(active(transition.norm, maps), transition.conv.weight)
            maps = nn.functional.avg_pool2d(maps, 2)
    features = active(layers.norm5, maps).mean((2, 3))
    torch.testing.assert_close(network(images), network.classifier(features), rtol=1e-4, atol=1e-5)


def test_the_built_in_networks():
    assert BUILT_IN == [
        "alexnet", "convnet", "densenet-idc", "densenet121", "lenet", "mlp", "resnet18", "resnet18-ap", "vgg11",
        "vgg16", "vit",
    ]  # fmt: skip
    assert all(issubclass(registry.load("network", name), Network) for name in BUILT_IN)
