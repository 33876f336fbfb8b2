"""StyleGAN's synthesis against naive loops, and the way from a pickle to a prior."""

import json
import pickle
from math import cos, pi, sin, sqrt

import numpy
import pytest
import torch
from made_up import make_spec
from persistence import modules, persistent
from scipy.signal import convolve2d, correlate2d
from typer.testing import CliRunner

from benchmark_adapters.cli.main import app
from dd_plugins.api import DataError
from dd_plugins.priors.base import check_contract
from dd_plugins.priors.from_stylegan import convert_stylegan
from dd_plugins.priors.store import load_prior
from dd_plugins.seeds import make_generator

__all__ = ["modules"]

SIZE, RATE, BANDWIDTH = 12, 8.0, 1.0
LAYERS = {  # up, down, padding, kernel, torgb, inputs, outputs, taps of the two filters
    "L0_12_4": (2, 2, (6, 6, 6, 6), 3, False, 5, 4, 12, 6),
    "L1_12_4": (2, 2, (6, 6, 6, 6), 3, False, 4, 4, 12, (6, 6)),
    "L2_12_4": (1, 1, (-1, -1, -1, -1), 3, False, 4, 4, 0, 0),
    "L3_8_3": (1, 1, (-2, -2, -2, -2), 1, True, 4, 3, 0, 0),
}


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=make_generator(hash_of(shape) + seed))


def hash_of(shape):
    return sum(7**k * side for k, side in enumerate(shape))


def weights():
    found = {
        "mapping.embed.weight": draw(7, 5),
        "mapping.embed_proj.weight": draw(6, 5),
        "mapping.embed_proj.bias": draw(6),
        "mapping.fc0.weight": draw(6, 12),
        "mapping.fc0.bias": draw(6, seed=1),
        "mapping.fc1.weight": draw(6, 6),
        "mapping.fc1.bias": draw(6, seed=2),
        "mapping.w_avg": draw(7, 6),
        "synthesis.input.weight": draw(5, 5),
        "synthesis.input.affine.weight": draw(4, 6, scale=0.3),
        "synthesis.input.affine.bias": torch.tensor([1.0, 0.2, 0.1, -0.3]),
        "synthesis.input.freqs": draw(5, 2, scale=0.7),
        "synthesis.input.phases": draw(5),
        "synthesis.input.transform": torch.tensor([[cos(0.4), -sin(0.4), 0.2], [sin(0.4), cos(0.4), -0.1], [0, 0, 1]]),
    }
    for name, (_, _, _, kernel, _, inputs, outputs, up, down) in LAYERS.items():
        where = f"synthesis.{name}"
        found[f"{where}.weight"] = draw(outputs, inputs, kernel, kernel, seed=3)
        found[f"{where}.bias"] = draw(outputs, seed=4)
        found[f"{where}.magnitude_ema"] = torch.tensor(1.7)
        found[f"{where}.affine.weight"] = draw(inputs, 6, seed=5)
        found[f"{where}.affine.bias"] = torch.ones(inputs)
        for which, taps in (("up", up), ("down", down)):
            if taps:
                shape = (taps,) if isinstance(taps, int) else taps
                found[f"{where}.{which}_filter"] = draw(*shape, seed=6).abs() / 8
    return found


def network(modules, mark, tensors, **changed):
    def module(kind, prefix, names, children=None, buffers=(), **values):
        return persistent(
            modules,
            mark,
            kind,
            {name: tensors[f"{prefix}.{name}"] for name in names},
            children,
            {name: tensors.get(f"{prefix}.{name}") for name in buffers},
            **values,
        )

    def dense(prefix, gain, activation="linear"):
        kind = changed.get("dense", "FullyConnectedLayer")
        return module(kind, prefix, ("weight", "bias"), activation=activation, weight_gain=gain, bias_gain=0.5)

    entry = module(
        "SynthesisInput", "synthesis.input", ("weight",), {"affine": dense("synthesis.input.affine", 0.4)},
        ("transform", "freqs", "phases"), size=numpy.array([SIZE, SIZE]), sampling_rate=RATE,
        bandwidth=numpy.float64(BANDWIDTH),
    )  # fmt: skip
    layers = {
        name: module(
            "SynthesisLayer", f"synthesis.{name}", ("weight", "bias"),
            {"affine": dense(f"synthesis.{name}.affine", 0.3)},
            ("magnitude_ema", "up_filter", "down_filter"), up_factor=up, down_factor=down, padding=list(padding),
            conv_kernel=kernel, is_torgb=torgb, conv_clamp=changed.get("clamp", 2.5),
        )
        for name, (up, down, padding, kernel, torgb, *_) in LAYERS.items()
    }  # fmt: skip
    synthesis = persistent(
        modules,
        mark,
        "SynthesisNetwork",
        {},
        {"input": entry, **layers},
        img_resolution=8,
        img_channels=3,
        output_scale=0.25,
    )
    embedding = persistent(modules, mark, "Embedding", {"weight": tensors["mapping.embed.weight"]})
    mapping = persistent(
        modules, mark, "MappingNetwork", {},
        {
            "embed": embedding,
            "embed_proj": dense("mapping.embed_proj", 0.6, "lrelu"),
            "fc0": dense("mapping.fc0", 0.2, "lrelu"),
            "fc1": dense("mapping.fc1", 0.2, "lrelu"),
        },
        {"w_avg": tensors["mapping.w_avg"]}, z_dim=6,
    )  # fmt: skip
    return persistent(modules, mark, "Generator", {}, {"synthesis": synthesis, "mapping": mapping}, z_dim=6)


@pytest.fixture
def pickled(modules, tmp_path):
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G": None, "G_ema": network(modules, tmp_path / "ran", weights())}))
    return file


# ---- naive forms ---------------------------------------------------------------------------------------------------


def naive_dense(held, prefix, gain, values, activation="linear"):
    found = values @ (held[f"{prefix}.weight"] * gain).T + held[f"{prefix}.bias"] * 0.5
    return numpy.where(found < 0, 0.2 * found, found) * sqrt(2) if activation == "lrelu" else found


def naive_input(held, style):
    """Pixel by pixel, with matrices of the projective plane."""
    c, s, x, y = naive_dense(held, "synthesis.input.affine", 0.4, style)
    length = sqrt(c * c + s * s)
    turn = numpy.array([[c, -s, 0], [s, c, 0], [0, 0, length]]) / length
    move = numpy.array([[1, 0, -x / length], [0, 1, -y / length], [0, 0, 1]])
    whole = turn @ move @ held["synthesis.input.transform"]
    maps = numpy.zeros((5, SIZE, SIZE))
    for k, (wave, phase) in enumerate(zip(held["synthesis.input.freqs"], held["synthesis.input.phases"], strict=True)):
        seen = wave @ whole[:2, :2]
        amplitude = min(max(1 - (numpy.linalg.norm(seen) - BANDWIDTH) / (RATE / 2 - BANDWIDTH), 0), 1)
        for row in range(SIZE):
            for column in range(SIZE):
                point = numpy.array([(column + 0.5 - SIZE / 2), (row + 0.5 - SIZE / 2)]) / RATE
                maps[k, row, column] = amplitude * sin(2 * pi * (seen @ point + wave @ whole[:2, 2] + phase))
    return numpy.einsum("oc,chw->ohw", held["synthesis.input.weight"] / sqrt(5), maps)


def naive_layer(held, name, state, style):
    """One output map at a time, with scipy's convolutions."""
    up, down, padding, kernel, torgb, inputs, outputs, *_ = LAYERS[name]
    where = f"synthesis.{name}"
    scales = naive_dense(held, f"{where}.affine", 0.3, style)
    made = []
    for number in range(outputs):
        kernels = held[f"{where}.weight"][number] * scales[:, None, None]
        norm = sqrt(inputs * kernel * kernel) if torgb else sqrt((kernels**2).sum() + 1e-8)
        kernels = kernels / norm / sqrt(held[f"{where}.magnitude_ema"])
        maps = (
            sum(correlate2d(state[k], kernels[k], mode="full") for k in range(inputs)) + held[f"{where}.bias"][number]
        )
        spread = numpy.zeros((maps.shape[0] * up, maps.shape[1] * up))
        spread[::up, ::up] = maps
        left, right, top, bottom = padding
        around = ((top, bottom), (left, right))
        spread = spread[-top:bottom, -left:right] if left < 0 else numpy.pad(spread, around)
        spread = filtered(spread, held.get(f"{where}.up_filter")) * up * up
        if not torgb:
            spread = numpy.where(spread < 0, 0.2 * spread, spread) * sqrt(2)
        spread = filtered(spread.clip(-2.5, 2.5), held.get(f"{where}.down_filter"))
        made.append(spread[::down, ::down])
    return numpy.stack(made)


def filtered(maps, taps):
    if taps is None:
        return maps
    return convolve2d(maps, taps if taps.ndim == 2 else numpy.outer(taps, taps), mode="valid")


def test_every_stage_equals_naive_loops(pickled, tmp_path):
    prior = convert_stylegan(pickled, tmp_path / "prior").generator
    held = {name: value.double().numpy() for name, value in weights().items()}
    labels = torch.tensor([3, 6])
    styles = prior.sample_styles(labels, make_generator(1))
    noise = torch.randn(2, 6, generator=make_generator(1)).double().numpy()
    for row, label in enumerate(labels):
        known = naive_dense(held, "mapping.embed_proj", 0.6, held["mapping.embed.weight"][label], "lrelu")
        joined = numpy.concatenate([part / sqrt((part**2).mean() + 1e-8) for part in (noise[row], known)])
        style = naive_dense(held, "mapping.fc0", 0.2, joined, "lrelu")
        style = naive_dense(held, "mapping.fc1", 0.2, style, "lrelu")
        numpy.testing.assert_allclose(styles[1][row], style, rtol=1e-4, atol=1e-5)
        expected = naive_input(held, style)
        states = list(prior.states(styles))
        numpy.testing.assert_allclose(states[0][row], expected, rtol=1e-4, atol=1e-4)
        for stage, name in enumerate(LAYERS):
            expected = naive_layer(held, name, expected, style)
            numpy.testing.assert_allclose(states[stage + 1][row], expected, rtol=1e-3, atol=1e-4)
        pixels = (0.25 * expected + 1) / 2
        numpy.testing.assert_allclose(prior(styles)[row], pixels, rtol=1e-3, atol=1e-4)


def test_pixels_outside_of_the_range_keep_their_value_and_gradient(pickled, tmp_path):
    prior = convert_stylegan(pickled, tmp_path / "prior").generator
    state = torch.tensor([-9.0, -4.0, 0.0, 4.0, 9.0], requires_grad=True)
    pixels = prior.to_pixels(state)
    assert pixels.tolist() == [-0.625, 0.0, 0.5, 1.0, 1.625]
    assert torch.autograd.grad(pixels.sum(), state)[0].tolist() == [0.125] * 5


def test_from_a_pickle_to_a_prior_and_nothing_runs(pickled, tmp_path):
    folder = tmp_path / "prior"
    stored = convert_stylegan(pickled, folder, licence="research only")
    assert not (tmp_path / "ran").exists()
    check_contract(stored.generator)
    assert stored.generator.num_stages == 4
    assert stored.generator.image_shape == (3, 8, 8)
    assert stored.generator.num_classes == 7
    assert stored.prior().licence == "research only"
    about = json.loads((folder / "prior.json").read_text())
    assert about["kind"] == "stylegan-xl"
    assert about["source"]["file"] == "network.pkl"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.pkl", "prior"]  # nothing half-made is left
    spec = make_spec(classes=2, side=8, channels=3)
    chosen = load_prior(folder, spec, classes=(5, 0)).generator
    whole, part = stored.generator, torch.tensor([5, 0])
    torch.testing.assert_close(
        chosen.sample_styles(torch.tensor([0, 1]), make_generator(2)), whole.sample_styles(part, make_generator(2))
    )
    with pytest.raises(DataError, match="a prior of 7 classes"):
        load_prior(folder, spec)
    with pytest.raises(DataError, match="expected one of its 7 classes for each of the 2 classes"):
        load_prior(folder, spec, classes=(5, 7))
    with pytest.raises(DataError, match="a prior is there already"):
        convert_stylegan(pickled, folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dense": "Conv2d"}, "is a Conv2d, which is no part of StyleGAN"),
        ({"clamp": -1.0}, "cannot be rebuilt|clamp"),
    ],
)
def test_other_networks_are_told_and_leave_nothing(modules, tmp_path, change, told):
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"G_ema": network(modules, tmp_path / "ran", weights(), **change)}))
    with pytest.raises(DataError, match=told) as caught:
        convert_stylegan(file, tmp_path / "prior")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["network.pkl"]


@pytest.mark.parametrize("there", ["a file", "not empty"])
def test_what_lies_where_a_prior_shall_go_stays(pickled, tmp_path, there):
    kept = tmp_path / "prior" if there == "a file" else tmp_path / "prior" / "notes.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(DataError, match=f"is {there}; choose another folder"):
        convert_stylegan(pickled, tmp_path / "prior")
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(("name", "told"), [("folder", "is a folder, not a pickle"), ("nothing.pkl", "is not there")])
def test_a_source_that_is_no_file(tmp_path, name, told):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=told):
        convert_stylegan(tmp_path / name, tmp_path / "prior")


def test_the_command(pickled, tmp_path):
    done = CliRunner().invoke(app, ["convert-prior", str(pickled), "--to", str(tmp_path / "prior")])
    assert done.exit_code == 0, done.output
    assert "4 levels, 7 classes, images of (3, 8, 8)" in done.output
