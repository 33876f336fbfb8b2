"""One matching step of every objective, as the field's scripts write it: loops over classes and steps, one graph.

Every class is embedded or differentiated alone, all graphs are held until the end, and the backward pass also reaches
the weights of the network. Random draws are made in the objective's own order, so that an objective of the same seed
must give the same loss and gradient: an oracle for tests, and what `step_times.py` measures the package against.
"""

import torch
from torch.nn import functional

from dd_plugins.objectives.bptt import BPTT
from dd_plugins.objectives.cafe import CAFE
from dd_plugins.objectives.dc import DC
from dd_plugins.objectives.dm import DM
from dd_plugins.objectives.dsa import DSA
from dd_plugins.objectives.haba import HaBaMatching
from dd_plugins.objectives.idc import IDC
from dd_plugins.objectives.mtt import MTT


def match(objective, images, targets, step):
    """The loss and its gradient with respect to ``images``, of one step of ``objective``."""
    leaf = images.detach().clone().requires_grad_()
    loss = LOSSES[type(objective)](objective, leaf, targets, step)
    loss.backward()
    behind(objective, images, targets)
    return loss.detach(), leaf.grad


def behind(objective, images, targets):
    """What an objective does once the images have their gradient."""
    if isinstance(objective, CAFE):
        objective._note(objective.trained.network)
    if isinstance(objective, HaBaMatching):
        objective._train_adversary(images.detach(), targets)


def by_class(objective, draw, rows, images, targets):
    """Label after label: its real and its synthetic images, augmented alike."""
    for label in range(objective.data.num_classes):
        own = images[targets == label]
        if len(own):
            record = torch.full((1,), label)
            real = objective.real.train.images(rows[label])
            yield label, *(objective.augmentation(b, draw, record.expand(len(b))) for b in (real, own))


# ---- gradients -----------------------------------------------------------------------------------------------------


def gradient_matching(objective, images, targets, step):
    network = objective.network_for(images.detach(), targets, step)
    rows = objective.real.train.per_class(objective.config.batch_real, objective.context.generator)
    draw = objective.augmentation.draw(objective.data.num_classes, objective.context.generator, one_choice=False)
    parameters, total = list(network.parameters()), 0
    for label, real, synthetic in by_class(objective, draw, rows, images, targets):
        sides = []
        for batch, graph in ((real, False), (synthetic, True)):
            loss = functional.cross_entropy(network(batch), torch.full((len(batch),), label))
            sides.append(torch.autograd.grad(loss, parameters, create_graph=graph))
        total = total + distance(*sides, objective.metric)
    return total


def distance(real, synthetic, metric):
    total = 0
    for one, other in zip(real, synthetic, strict=True):
        if metric == "dc":
            if one.ndim > 1:
                a, b = one.flatten(1), other.flatten(1)
                total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        elif one.ndim == 4:
            a, b = one.flatten(), other.flatten()
            gaps = {"mse": (a - b) ** 2, "l1": (a - b).abs(), "cosine": 1 - a @ b / (a.norm() * b.norm())}
            total = total + gaps[metric].sum()
    return total


# ---- features ------------------------------------------------------------------------------------------------------


def distribution_matching(objective, images, targets, step):
    network = objective.context.make_network(objective.context.draw_seed())
    rows = objective.real.train.per_class(objective.config.batch_real, objective.context.generator)
    draw = objective.augmentation.draw(objective.data.num_classes, objective.context.generator, one_choice=False)
    total = 0
    for _, real, synthetic in by_class(objective, draw, rows, images, targets):
        gap = network.embed(real).detach().mean(0) - network.embed(synthetic).mean(0)
        total = total + (gap**2).sum()
    return total


def cafe(objective, images, targets, step):
    config, generator = objective.config, objective.context.generator
    if objective.outer_done or objective.trained is None:
        objective.trained = objective._begin()
    else:
        objective._train(objective.trained, images.detach(), targets)
    network = objective.trained.network
    draw = objective.augmentation.draw(objective.data.num_classes, generator, one_choice=False)
    rows = objective.real.train.per_class(config.batch_real, generator)
    total, features, labels, centres = 0, [], [], {}
    for label, real, synthetic in by_class(objective, draw, rows, images, targets):
        pairs = list(zip([tap.detach() for tap in network.taps(real)], network.taps(synthetic), strict=True))
        weights = [config.shallow_weight] * (len(pairs) - 2) + [config.deep_weight] * 2
        for weight, (expected, found) in zip(weights, pairs, strict=True):
            total = total + weight * ((expected.mean(0) - found.mean(0)) ** 2).sum()
        expected, found = (side.flatten(1) for side in pairs[-1])
        centres[label] = found.mean(0)
        total = total + ((expected.mean(0) - centres[label]) ** 2).sum()
        features.append(expected)
        labels.append(torch.full((len(expected),), label))
    logits = torch.cat(features) @ torch.stack([centres[label] for label in sorted(centres)]).T
    told = functional.cross_entropy(logits, torch.cat(labels), reduction="sum")
    return total + config.discrimination_weight * told


# ---- unrolled training ---------------------------------------------------------------------------------------------


def unrolled(network, weights, images, batches, lr, momentum=0.0):
    """Weights behind SGD on synthetic images, in one graph from the first step to the last."""
    velocity = [torch.zeros_like(weight) for weight in weights]
    names = [name for name, _ in network.named_parameters()]
    for rows, labels, augment in batches:
        logits = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (augment(images[rows]),))
        gradients = torch.autograd.grad(functional.cross_entropy(logits, labels), weights, create_graph=True)
        velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
        weights = [weight - lr * v for weight, v in zip(weights, velocity, strict=True)]
    return weights


def trajectory_matching(objective, images, targets, step):
    start, goal = objective._draw_pair()
    drawn = [objective._batch(rows, targets) for rows in objective._rows(len(images))]
    batches = [(batch.rows, batch.targets, batch.augment) for batch in drawn]
    network, flat = objective.network.network, objective.network
    parts = torch.split(start, flat.sizes)
    weights = [part.view(shape).clone().requires_grad_() for part, shape in zip(parts, flat.shapes, strict=True)]
    lr = torch.tensor(objective.lr, requires_grad=True)
    last = torch.cat([weight.flatten() for weight in unrolled(network, weights, images, batches, lr)])
    loss = ((last - goal) ** 2).sum() / ((start - goal) ** 2).sum()
    objective._learn_lr(float(torch.autograd.grad(loss, lr, retain_graph=True)[0]))
    return loss


def haba(objective, images, targets, step):
    loss = trajectory_matching(objective, images, targets, step)
    first, second = objective._two()
    one, two = objective._views(images, first, second)
    network = objective.adversary.network.train()
    likeness = objective._likeness(network.embed(one), network.embed(two))
    return loss + objective.config.adversarial_weight * likeness


def back_propagation_through_time(objective, images, targets, step):
    config, generator = objective.config, objective.context.generator
    classes = torch.randperm(objective.data.num_classes, generator=generator)[: config.classes].sort().values
    network = objective.context.make_network(objective.context.draw_seed()).train()
    draw = objective.augmentation.draw(1, generator)
    batches = []
    for _ in range(config.unroll):
        rows = torch.cat([objective._some(objective.members[label]) for label in classes.tolist()])
        batches.append((rows, targets[rows], lambda batch: objective.augmentation(batch, draw)))
    weights = unrolled(network, list(network.parameters()), images, batches, config.network_lr, config.network_momentum)
    rows = objective.real.train.per_class(config.batch_real, generator)[classes].flatten()
    named = dict(zip((name for name, _ in network.named_parameters()), weights, strict=True))
    logits = torch.func.functional_call(
        network, named, (objective.augmentation(objective.real.train.images(rows), draw),)
    )
    return functional.cross_entropy(logits, objective.real.train.labels[rows])


LOSSES = {
    DC: gradient_matching,
    DSA: gradient_matching,
    IDC: gradient_matching,
    DM: distribution_matching,
    CAFE: cafe,
    MTT: trajectory_matching,
    HaBaMatching: haba,
    BPTT: back_propagation_through_time,
}
