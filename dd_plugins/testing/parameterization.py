"""Checks of a parameterization."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch

from dd_plugins.api import (
    BudgetTooSmall,
    Staged,
    StorageBudget,
    UsageError,
    float32_cost,
    parse_config,
    temporary_folder,
)
from dd_plugins.seeds import make_generator
from dd_plugins.testing.checks import NotApplicable, Subject
from dd_plugins.testing.common import check_declares_its_api_version, check_documented, check_settings_are_described
from dd_plugins.testing.containers import (
    allocate,
    assert_refused,
    assert_same,
    enter_stage,
    learned_tensors,
    make,
    make_finished,
    name_of,
    no_tensors,
    some_units,
    stages_of,
)
from dd_plugins.testing.subjects import IPCS, global_generators_left_alone, made_up_data


def check_fits_its_budget_at_every_ipc(subject: Subject) -> None:
    """At every IPC what is stored is within the budget, in elements and in bytes, or BudgetTooSmall is raised."""
    real = made_up_data()
    fitting = 0
    for ipc in IPCS:
        try:
            container = allocate(subject, real, ipc)
        except BudgetTooSmall:
            continue
        fitting += 1
        allowed, stored = container.budget, container.storage()
        message = (
            f"{subject.name} stores {stored.elements} elements in {stored.nbytes} bytes at IPC {ipc}, but its budget is"
        )
        assert stored.elements <= allowed.elements, f"{message} {allowed.elements} elements"
        assert stored.nbytes <= allowed.nbytes, f"{message} {allowed.nbytes} bytes"
        ratio = container.budget_ratio()
        assert ratio == 1, f"{subject.name}.budget_ratio() is {ratio}, but no setting asks for it"
    assert fitting, f"{subject.name} fits into the budget of none of the IPCs {IPCS}"


def check_planning_is_arithmetic(subject: Subject) -> None:
    """Planning creates no tensor, gives equal counts, and planning again with what it resolved gives the same plan."""
    real = made_up_data()
    config = parse_config(subject.plugin.Config, subject.config, subject.kind)
    for ipc in IPCS:
        budget = StorageBudget.ipc(real.spec, ipc)
        with suppress(BudgetTooSmall), no_tensors():
            plan = subject.plugin.plan(real.spec, budget, config, float32_cost)
            again = subject.plugin.plan(real.spec, budget, plan.config, float32_cost)
            assert len(set(plan.counts)) == 1, f"{subject.name}.plan gives classes different counts: {plan.counts}"
            assert plan == again, f"{subject.name}.plan gives {again} for what it resolved before to {plan}"


def check_build_draws_nothing(subject: Subject) -> None:
    """Building allocates; what is random belongs into reset."""
    real = made_up_data()
    with global_generators_left_alone(f"{subject.name}.build"):
        for ipc in IPCS:
            with suppress(BudgetTooSmall):
                allocate(subject, real, ipc)


def check_reset_is_seeded(subject: Subject) -> None:
    """The same seed gives the same images, another seed others, and global generators are left alone."""
    real = made_up_data()
    found = []
    for seed in (0, 0, 1):
        container = make(subject, real, reset=False)
        with global_generators_left_alone(f"{subject.name}.reset"):
            container.reset(make_generator(seed), real)
        found.append(container.decode())
    one, again, other = found
    message = f"{subject.name}.reset gives"
    assert torch.equal(one, again), f"{message} other images for the same seed; draw from the generator that is given"
    assert not torch.equal(one, other), f"{message} the same images for different seeds"


def check_reset_begins_anew(subject: Subject) -> None:
    """A second reset gives the images that a first one gives: nothing of what the earlier one left is in them."""
    real = made_up_data()
    one, other, again = (make(subject, real, reset=False) for _ in range(3))
    again.reset(make_generator(1), real)
    for container in (one, other, again):
        container.reset(make_generator(0), real)
    if not torch.equal(one.decode(), other.decode()):
        raise NotApplicable("its reset does not follow the generator")
    assert torch.equal(one.decode(), again.decode()), f"{subject.name}.reset depends on what an earlier one left"


def check_decoded_images(subject: Subject) -> None:
    """Images are finite floats of the data set's shape, colour or grey, ordered by class, and each class has some."""
    grey = made_up_data(classes=3, shape=(1, 8, 8))
    try:
        made = make(subject, grey).decode()
    except UsageError:
        made = None  # it says that it does not take them
    assert made is None or bool(made.isfinite().all()), f"{subject.name} decodes NaN or infinite images of grey data"
    container = make(subject, made_up_data())
    images, labels = container.decode(), container.labels
    assert bool(images.isfinite().all()), f"{subject.name} decodes images with NaN or infinite values"
    assert bool((labels.diff() >= 0).all()), f"{subject.name}: labels are not ordered by class"
    counts = torch.bincount(labels, minlength=container.data.num_classes).tolist()
    assert counts == list(container.counts), f"{subject.name}: labels {counts} are not its counts {container.counts}"
    assert len(images) == sum(counts), f"{subject.name} decodes {len(images)} images, but has {sum(counts)} labels"


def check_decodes_row_by_row(subject: Subject) -> None:
    """An image is the same, alone or beside others: that makes chunks, and so large sets, possible."""
    container = make(subject, made_up_data())
    whole = container.decode()
    alone = torch.cat([container.decode(torch.tensor([row])) for row in range(len(whole))])
    assert_same(alone, whole, f"{subject.name}: images decoded one by one are not those decoded together")
    order = torch.arange(len(whole) - 1, -1, -1)
    assert_same(container.decode(order), whole[order], f"{subject.name}: images depend on the order of their index")


def check_decoding_is_deterministic(subject: Subject) -> None:
    """Decoding twice gives the same images bit by bit, and draws from no global generator."""
    container = make(subject, made_up_data())
    with global_generators_left_alone(f"{subject.name}._decode"):
        one, other = container.decode(), container.decode()
    assert torch.equal(one, other), f"{subject.name} decodes other images the second time"


def check_gradients_reach_everything_that_is_learned(subject: Subject) -> None:
    """In every stage the images depend on every tensor that is learned, and all that is stored is learned.

    A staged container may store other tensors than it learns.
    """
    container = make(subject, made_up_data())
    for stage in stages_of(container):
        enter_stage(container, stage)
        held = learned_tensors(container)
        for tensor in held:
            tensor.grad = None
        grad = torch.randn(container.decode().shape, generator=make_generator(1))
        container.backward(torch.arange(len(container.labels)), grad)
        for number, tensor in enumerate(held):
            name = name_of(container, tensor) or f"tensor {number} of its groups"
            message = f"{subject.name}, stage {stage.name}: {name}"
            assert tensor.grad is not None, f"{message} gets no gradient"
            assert bool((tensor.grad != 0).any()), f"{message} gets a gradient of zeros alone"
            assert bool(tensor.grad.isfinite().all()), f"{message} gets a NaN or infinite gradient"
    if not isinstance(container, Staged):
        stored = {id(p): name for name, p in container.named_parameters() if name in container.state_dict()}
        idle = [name for key, name in stored.items() if key not in {id(tensor) for tensor in held}]
        assert not idle, f"{subject.name} stores {', '.join(idle)}, but no group of the optimizer holds it"


def check_chunked_gradients_are_whole_ones(subject: Subject) -> None:
    """Pulling a gradient back in chunks is the same as in one piece."""
    container = make(subject, made_up_data())
    enter_stage(container, stages_of(container)[0])
    held, rows = learned_tensors(container), torch.arange(len(container.labels))
    grad = torch.randn(container.decode().shape, generator=make_generator(1))
    found = []
    for size in (None, 3):
        container.chunk_size = size
        for tensor in held:
            tensor.grad = None
        container.backward(rows, grad)
        found.append([tensor.grad for tensor in held])
    for number, (whole, chunked) in enumerate(zip(*found, strict=True)):
        name = name_of(container, held[number]) or f"tensor {number} of its groups"
        if whole is None or chunked is None:
            assert whole is chunked, f"{subject.name}: {name} gets a gradient in one piece only, or in chunks only"
            continue
        apart = float((chunked - whole).abs().max()) / (float(whole.abs().max()) or 1.0)
        assert apart < 1e-3, f"{subject.name}: the gradient of {name} in chunks is off by {apart:.2g} of its largest"


def check_a_step_changes_the_images(subject: Subject) -> None:
    """One step of Adam on its own groups moves the images, and they stay finite."""
    container = make(subject, made_up_data())
    enter_stage(container, stages_of(container)[0])
    before = container.decode()
    learned_tensors(container)
    optimizer = torch.optim.Adam(container.parameter_groups(), lr=0.01)  # groups without a rate get this one
    container.backward(torch.arange(len(before)), torch.randn(before.shape, generator=make_generator(1)))
    optimizer.step()
    container.project()
    after = container.decode()
    assert bool(after.isfinite().all()), f"{subject.name}: NaN or infinite images after one step"
    assert not torch.equal(before, after), f"{subject.name}: a step of the optimizer changes no image"


def check_is_rebuilt_from_its_file_alone(subject: Subject) -> None:
    """A saved file gives the same images bit by bit, and the file holds what the ledger counts."""
    container = make_finished(subject, made_up_data())
    with temporary_folder() as folder:
        path = folder / "synthetic.safetensors"
        ledger = container.save(path)
        make_finished(subject, made_up_data(), seed=7)  # what a class remembers is now of another set
        loaded = subject.plugin.load(path)
        size = path.stat().st_size
    assert torch.equal(loaded.labels, container.labels), f"{subject.name}: other labels after a reload"
    assert torch.equal(loaded.decode(), container.decode()), (
        f"{subject.name}: other images after a reload; what _decode reads must be an nn.Parameter or a buffer"
    )
    assert size >= ledger.nbytes, f"{subject.name}: a file of {size} bytes for a ledger of {ledger.nbytes}"


def check_pruning_keeps_the_other_images(subject: Subject) -> None:
    """Dropped images save storage, and the others stay as they were; or it says that they cannot be dropped alone."""
    container = make_finished(subject, made_up_data())
    if not subject.plugin.prunable():
        assert_refused(lambda: container.keep(some_units(container, 0)), f"{subject.name}.keep")
        raise NotApplicable("its images cannot be dropped alone, and it says so")
    for turn in range(2):  # what is pruned can be pruned again
        images, labels, before = container.decode(), container.labels, container.storage()
        index = some_units(container, turn)
        container.keep(index)
        assert_same(container.decode(), images[index], f"{subject.name}: images change when others are dropped", 1e-6)
        assert torch.equal(container.labels, labels[index]), f"{subject.name}: other labels after a pruning"
        after = container.storage()
        assert after.elements < before.elements, (
            f"{subject.name} stores {after.elements} elements without some of its images, {before.elements} with them"
        )
    with temporary_folder() as folder:
        container.save(folder / "pruned.safetensors")
        loaded = subject.plugin.load(folder / "pruned.safetensors")
    assert torch.equal(loaded.decode(), container.decode()), f"{subject.name}: a pruned set is reloaded as another one"


def check_moves_to_other_types_and_devices(subject: Subject) -> None:
    """It decodes in bfloat16, and on a GPU where there is one, as on the CPU."""
    container = make_finished(subject, made_up_data())
    expected = container.decode()
    if torch.cuda.is_available():
        found = container.to("cuda").decode()
        assert found.is_cuda, f"{subject.name} decodes on {found.device} when it was moved to a GPU"
        assert_same(found.cpu(), expected, f"{subject.name} decodes other images on a GPU", 1e-3)
        container.to("cpu")
    low = container.to(torch.bfloat16).decode()
    assert low.shape == expected.shape, f"{subject.name} decodes images of another shape in bfloat16"
    assert bool(low.isfinite().all()), f"{subject.name} decodes NaN or infinite images in bfloat16"


def check_stages_add_up(subject: Subject) -> None:
    """The shares of its stages are positive and add up to 1, and every stage can be entered."""
    container = make(subject, made_up_data())
    if not isinstance(container, Staged):
        raise NotApplicable("it is not learned in stages")
    stages = container.stages()
    assert stages, f"{subject.name} has no stage"
    assert all(stage.share > 0 for stage in stages), f"{subject.name} has a stage without a share of the steps"
    total = sum(stage.share for stage in stages)
    assert abs(total - 1) < 1e-6, f"{subject.name}: the shares of its stages add up to {total}"
    before = container.decode()
    container.enter_stage(stages[0])
    assert_same(container.decode(), before, f"{subject.name}: entering the first stage changes the images")


CHECKS: list[Callable[[Subject], None]] = [
    check_documented,
    check_declares_its_api_version,
    check_settings_are_described,
    check_fits_its_budget_at_every_ipc,
    check_planning_is_arithmetic,
    check_build_draws_nothing,
    check_reset_is_seeded,
    check_reset_begins_anew,
    check_decoded_images,
    check_decodes_row_by_row,
    check_decoding_is_deterministic,
    check_gradients_reach_everything_that_is_learned,
    check_chunked_gradients_are_whole_ones,
    check_a_step_changes_the_images,
    check_is_rebuilt_from_its_file_alone,
    check_pruning_keeps_the_other_images,
    check_moves_to_other_types_and_devices,
    check_stages_add_up,
]
