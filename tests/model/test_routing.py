from pathlib import Path

import pytest
import torch
from helpers import random_tokens, tiny, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from pico.base.routers import ROUTERS, SLACK, TAUGHT, TEACHERS, BestScored, Random, RouterInput, listing, spacelike
from pico.base.shapes import RISEN
from pico.base.symbols import BOS, END_OF_TURN, EOS
from pico.model.attention import alibi_slopes
from pico.model.pico import Pico
from pico.model.routing import ROOM, Router, counted_order, pack, slots_needed, sorted_order
from pico.model.scorers import SCORERS


def route(rule, tokens, training=False, capacity=0.5, positions=None, x=None):
    config = tiny_config(rule, latent_capacity_factor=capacity)
    router = SCORERS[config.rule.scorer](config).train(training)
    torch.nn.init.normal_(router.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    previous = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], 1)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens) if positions is None else positions
    x = torch.randn(*tokens.shape, 32, generator=torch.Generator().manual_seed(2)) if x is None else x
    text = torch.nn.functional.pad(tokens, (config.history, 0), value=BOS)
    return router, router(x, tokens, previous, positions, text=text)


def ids(text):
    return torch.tensor([list(text)])


def test_spacelike_against_a_table():
    letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    table = [not (i in letters or 0x80 <= i < 0xC0) for i in range(256)] + [True] * 8  # control symbols count
    assert spacelike(torch.arange(264)).tolist() == table
    for text, wanted in ((" ", 1), (".", 1), ("\n", 1), ("@", 1), ("[", 1), ("`", 1), ("{", 1), ("é", 1), ("a", 0)):
        assert spacelike(ids(text.encode()))[0, 0] == bool(wanted)  # é: its lead byte starts, the next continues


def test_space_routes_the_first_byte_after_a_word_and_control_symbols():
    text = [BOS, *b"Hi,  you: 42.\n", *"é!".encode(), EOS, BOS, *b"a"]
    _, routing = route("space", torch.tensor([text]))
    #         BOS H  i  ,  _  _  y  o  u  :  _  4  2  .  \n é  .. !  EOS BOS a
    wanted = [1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0]
    assert routing.routed[0].int().tolist() == wanted


def test_fixed_rules_route_what_they_say():
    tokens = random_tokens(3, 4000)
    assert route("all", tokens)[1].routed.all()
    assert not route("none", tokens)[1].routed.any()
    assert route("stride", tokens, capacity=0.25)[1].routed[0].nonzero().flatten().tolist() == list(range(0, 4000, 4))
    for capacity in (0.1, 0.25, 0.5):
        fraction = route("random", tokens, capacity=capacity)[1].routed.float().mean().item()
        assert abs(fraction - capacity) < 0.02
    assert torch.equal(route("random", tokens)[1].routed, route("random", tokens)[1].routed)  # no hidden state


@pytest.mark.parametrize("text", ["one byte", "noise"])
@pytest.mark.parametrize("capacity", [0.001, 0.1, 1 / 3, 0.5, 0.9])
def test_a_coin_is_fair_at_any_rate_and_in_any_text(text, capacity):
    """Within four standard deviations of a million throws, and with the gaps of a coin."""
    count = 10**6
    tokens = torch.full((1, count), 97) if text == "one byte" else random_tokens(1, count)
    routed = Random(capacity).choose(RouterInput(None, tokens, None, torch.arange(count)[None], None))[0]
    assert abs(routed.float().mean().item() - capacity) < 4 * (capacity * (1 - capacity) / count) ** 0.5 + 2**-16
    gaps = torch.diff(routed.nonzero().flatten()).float()
    assert (gaps.std() / gaps.mean()).item() == pytest.approx((1 - capacity) ** 0.5, rel=0.08)


@pytest.mark.parametrize("rule", ROUTERS)
def test_a_rule_chooses_the_same_bytes_of_tensors_and_of_arrays(rule):
    rule, tokens = ROUTERS[rule](0.3), random_tokens(2, 300, high=264)
    score = torch.randn(2, 300, generator=torch.Generator().manual_seed(1))
    seen = RouterInput(score, tokens, tokens.roll(1), torch.arange(10**6, 10**6 + 600).view(2, 300), torch.tensor(0.2))
    for row, routed in enumerate(rule.choose(seen)):
        arrays = [x[row].numpy() for x in seen[:4]]
        assert rule.choose(RouterInput(*arrays, 0.2)).tolist() == routed.tolist()


def test_the_table_holds_causal_rules_and_the_docs_list_them():
    """Any of them may generate. Each is told apart by its first line."""
    assert all(rule.causal for rule in ROUTERS.values()) and not BestScored.causal
    docs = Path(__file__).parents[2] / "docs" / "routers.md"
    assert docs.read_text("utf-8").endswith("\n\n" + listing()), (
        "put what `python -m pico.base.routers` prints at the end"
    )


@pytest.mark.parametrize("rule", ROUTERS)
def test_a_rule_routes_about_the_fraction_that_its_flops_are_planned_by(rule):
    if ROUTERS[rule](0.5).target is not None and not ROUTERS[rule].learned and not ROUTERS[rule].steered:
        routed = route(rule, random_tokens(4, 4000))[1].routed.float().mean().item()
        assert routed == pytest.approx(tiny_config(rule).rule.rate, abs=0.02)


def test_a_rule_and_the_score_fill_the_capacity_together():
    tokens = torch.tensor([list(b"She had 2 cats, one red, one not."), list(b"a b c d e f g h i j k l m n o p q")])
    router, routing = route("space+topk", tokens, training=True, capacity=0.4)
    space = spacelike(tokens) & ~spacelike(tokens.roll(1))
    rest = routing.score[0].masked_fill(space[0], -torch.inf)
    wanted = space[0].clone()
    wanted[rest.topk(13 - int(space[0].sum())).indices] = True
    assert torch.equal(routing.routed[0], wanted) and routing.routed.sum(1).tolist() == [13, 13]
    assert routing.routed[1].nonzero().flatten().tolist() == list(range(1, 27, 2))  # more of them than there is room
    score = routing.score.detach().requires_grad_()
    router.score = lambda stream: score
    router.loss(routing).backward()
    assert torch.equal(score.grad != 0, ~space)  # what the rule decides, the score need not foresee
    _, evaluated = route("space+topk", tokens, capacity=0.4)
    assert torch.equal(evaluated.routed, space | (evaluated.score > 0))


def test_a_rule_and_a_coin_fill_the_capacity_together():
    router, tokens = Router(tiny_config("space+random", latent_capacity_factor=0.3)).train(), random_tokens(2, 3000)
    tokens[tokens < 200] = ord("a")
    space, x = spacelike(tokens) & ~spacelike(tokens.roll(1, 1)), torch.zeros(2, 3000, 32)
    positions = torch.arange(3000).expand(2, -1)
    for _ in range(40):
        routing = router(x, tokens, tokens.roll(1, 1), positions)
        router.update()
    fraction, alone = (each.float().mean().item() for each in (routing.routed, space))
    assert fraction == pytest.approx(0.3, abs=0.005) and 0.05 < alone < 0.25 and routing.routed[space].all()
    assert torch.equal(router.eval()(x, tokens, tokens.roll(1, 1), positions).routed, routing.routed)


@pytest.mark.parametrize("rule", ["stride", "random"])
def test_positional_rules_use_the_positions_given(rule):
    """Generation passes absolute positions, so the tail of a text is routed as in the whole."""
    tokens, at = random_tokens(2, 90), torch.arange(90).expand(2, -1)
    whole = route(rule, tokens)[1].routed
    assert torch.equal(route(rule, tokens[:, 37:], positions=at[:, 37:])[1].routed, whole[:, 37:])


def test_topk_chooses_the_best_scores_in_training_and_positive_scores_in_evaluation():
    tokens = random_tokens(3, 40)
    _, train = route("topk", tokens, training=True, capacity=0.3)
    for row in range(3):
        best = sorted(range(40), key=lambda i: -train.score[row, i])[:12]
        assert train.index[row].tolist() == sorted(best) == train.routed[row].nonzero().flatten().tolist()
    assert train.valid.all()
    _, evaluate = route("topk", tokens, capacity=0.3)
    assert torch.equal(evaluate.routed, evaluate.weight > 0.5)


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(0, 9))
def test_pack_takes_the_first_routed_bytes_in_order(rows, slots):
    index, valid = pack(torch.tensor(rows), slots)
    for row, at, ok in zip(rows, index.tolist(), valid.tolist()):
        wanted = [i for i, routed in enumerate(row) if routed][:slots]
        assert [i for i, o in zip(at, ok) if o] == wanted == at[: len(wanted)]
        assert len(set(at)) == len(at) == slots


@given(st.integers(1, 5), st.integers(0, 200), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(0, 99))
def test_counting_orders_as_sorting_does(rows, length, share, seed):
    routed = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < share
    assert torch.equal(counted_order(routed), sorted_order(routed))


@pytest.mark.parametrize("rule", ROUTERS)
def test_slots_hold_every_routed_byte(rule):
    if rule == "none":
        return
    _, routing = route(rule, random_tokens(4, 50))
    assert torch.equal(routing.routed, routing.chosen)
    for row in range(4):
        chosen = routing.index[row][routing.valid[row]]
        assert chosen.tolist() == routing.routed[row].nonzero().flatten().tolist()
    assert routing.index.shape[1] == routing.routed.sum(1).max()  # and not one slot more


def test_the_training_buffer_is_static_and_late_bytes_pass_by():
    tokens = random_tokens(4, 64)
    slots = int(64 * 0.25 * SLACK)
    for bias, full in ((9.0, True), (0.0, True), (-1.6, False), (-9.0, False)):
        router, routing = route("threshold", tokens, training=True, capacity=0.25)
        router.bias.data.fill_(bias)
        x = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(2))
        routing = router(x, tokens, tokens, tokens)
        assert routing.index.shape == (4, slots)
        first = (routing.chosen.cumsum(1) <= slots) & routing.chosen
        assert torch.equal(routing.routed, first)
        assert bool((routing.chosen & ~routing.routed).any()) == full


class OnGpu:
    """A tensor of routed bytes that says it is on a GPU, and counts how often its values are asked for."""

    is_cuda = True

    def __init__(self, routed):
        self.routed, self.shape, self.asked = routed, routed.shape, 0

    def __getattr__(self, name):
        self.asked += 1
        return getattr(self.routed, name)


@pytest.mark.parametrize("rule", [rule for rule in ROUTERS if not ROUTERS[rule].learned])
def test_a_gpu_is_waited_for_once_in_training_and_every_routed_byte_finds_room(rule):
    tokens = torch.tensor([list((b"some words, and more of them. " * 40)[i : i + 1000]) for i in range(4)])
    router, routing = route(rule, tokens, training=True, capacity=0.25)
    wanted = OnGpu(routing.chosen)
    slots = router.slots(router.rule, wanted)
    assert routing.chosen.sum(1).max() <= slots <= ROOM * routing.chosen.float().mean() * 1000 + 64
    assert wanted.asked == (router.rule.most(1000) is None)
    empty, short = OnGpu(torch.zeros_like(routing.chosen)), OnGpu(routing.chosen[:, :100])
    assert router.slots(router.rule, empty) == slots and 1 <= router.slots(router.rule, short) <= 100
    assert not empty.asked and not short.asked
    if rule == "stride":
        assert slots == 250


def test_evaluation_on_a_gpu_rounds_up_and_decoding_does_not_wait():
    routed = torch.arange(1000)[None] % 4 == 0
    assert slots_needed(routed) == 250 and slots_needed(OnGpu(routed)) == 256
    assert slots_needed(OnGpu(routed[:, :70])) == 64 and slots_needed(OnGpu(torch.ones(1, 70, dtype=bool))) == 70
    step = OnGpu(routed[:, :64])
    assert slots_needed(step) == 64 and not step.asked


@pytest.mark.parametrize("rule", ROUTERS)
def test_no_forward_of_training_waits_for_the_gpu(rule):
    """A fake tensor has a shape and a device but no values: whatever needs one of them raises."""
    with FakeTensorMode(), torch.device("cuda"):
        model = Pico(tiny_config(rule), "dense", torch.bfloat16).train()
        model.router.share = 0.2  # of the first batch, which is waited for
        tokens = torch.zeros(2, 200, dtype=torch.long)
        out = model(tokens[:, :190], targets=tokens[:, 1:194])
        model.end_step()
        assert out.loss.is_cuda and (out.slots < 190 or rule == "all")
    alibi_slopes.cache_clear()  # it keeps the fake ones


def test_a_gpu_routes_what_a_cpu_does(monkeypatch):
    """With room for all of them: empty slots change nothing."""
    model = tiny("space").train()
    tokens = torch.tensor([list((b"some words, and more of them. " * 9)[i : i + 214]) for i in (0, 3, 7)])
    plain = model(tokens[:, :210], targets=tokens[:, 1:])
    monkeypatch.setattr(Router, "slots", lambda self, rule, wanted: 128)
    padded = model(tokens[:, :210], targets=tokens[:, 1:])
    assert torch.equal(plain.routed, padded.routed) and plain.slots < padded.slots == 128
    torch.testing.assert_close(plain.loss, padded.loss)


def test_skipped_bytes_are_reported():
    model = tiny("threshold", latent_capacity_factor=0.25).train()
    tokens = random_tokens(2, 64)
    model.router.threshold.fill_(-100.0)  # wants everything: 20 of 64 bytes find room
    assert model(tokens).skipped.item() == pytest.approx(1 - 20 / 64)
    model.router.threshold.fill_(100.0)
    assert model(tokens).skipped == 0
    model.router.threshold.fill_(-100.0)
    assert model.eval()(tokens).skipped == 0


def test_training_and_evaluation_route_identically_when_nothing_is_skipped():
    model = tiny("threshold", latent_capacity_factor=0.5)
    tokens = random_tokens(3, 60)
    score = model(tokens).router_weight.logit()
    model.router.threshold.fill_(score.quantile(0.6).item())
    evaluate, train = model.eval()(tokens), model.train()(tokens)
    assert train.skipped == 0 and 0 < train.routed.sum() < 3 * 37  # fewer than the slots, so some stay empty
    assert torch.equal(train.routed, evaluate.routed)
    torch.testing.assert_close(train.logits, evaluate.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("capacity", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", ["normal", "skewed", "two bumps"])
def test_threshold_controller_meets_the_capacity(capacity, shape):
    """On a stationary stream of scores, whatever their distribution; about 2 000 bytes an update."""
    router = Router(tiny_config("threshold", latent_capacity_factor=capacity)).train()
    generator = torch.Generator().manual_seed(0)
    fractions = []
    for _ in range(150):
        score = torch.randn(4, 512, generator=generator) * 0.3
        if shape == "skewed":
            score = score.mul(2).exp()  # log-normal: the normal density the controller assumes is 3 times off
        if shape == "two bumps":
            score += 2.0 * (torch.rand(4, 512, generator=generator) < 0.5)
        router.score = lambda x, score=score: score
        routing = router(torch.empty(4, 512, 32), *[torch.zeros(4, 512, dtype=torch.long)] * 3)
        fractions.append(routing.chosen.float().mean().item())
        router.update()
    assert abs(sum(fractions[-50:]) / 50 - capacity) < 0.015
    assert max(abs(f - capacity) for f in fractions[-50:]) < 0.1


def test_controller_ignores_evaluation_and_survives_no_data():
    router, _ = route("threshold", random_tokens(2, 30))
    router.update()
    assert abs(router.threshold) < 1e-3
    for rule in ROUTERS:
        if not ROUTERS[rule].steered:
            router, _ = route(rule, random_tokens(2, 30), training=True)
            router.update()
            assert router.threshold == 0


def test_the_threshold_is_part_of_the_weights():
    model, other = tiny("threshold"), tiny("threshold", seed=1)
    model.router.threshold.fill_(0.7)
    other.load_state_dict(model.state_dict())
    assert other.router.threshold == pytest.approx(0.7)


def test_topk_loss_is_bce_of_the_causal_rule_on_logits():
    router, routing = route("topk", random_tokens(2, 40), training=True)
    p = torch.sigmoid(routing.score)
    wanted = -torch.where(routing.routed, p.log(), (1 - p).log()).mean()
    torch.testing.assert_close(router.loss(routing), wanted)
    router.weight.data.mul_(1e4)  # log(sigmoid) would be -inf
    assert torch.isfinite(router.loss(routing))


def test_the_last_part_of_training_routes_causally_and_still_learns_the_best():
    tokens, x = random_tokens(2, 40), torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(3))
    router, best = route("topk", tokens, training=True, x=x)
    router.causal = True
    routing = router(x, tokens, tokens, tokens)
    slots = int(40 * 0.5 * SLACK)
    for row in range(2):
        positive = (routing.score[row] > 0).nonzero().flatten()
        assert routing.routed[row].nonzero().flatten().tolist() == positive[:slots].tolist()
    assert not torch.equal(routing.routed, best.routed)
    torch.testing.assert_close(router.loss(routing), router.loss(best))


@pytest.mark.parametrize("router", ["topk", "threshold"])
@pytest.mark.parametrize("teacher", [name for name, rule in TEACHERS.items() if not rule.learned])
def test_a_teacher_routes_at_first_and_its_choice_is_learned(router, teacher):
    tokens = torch.tensor([list(b"She had 2 cats. One was red, and one was not.")])
    model = tiny(router, router_teacher=teacher, latent_capacity_factor=0.25).train()
    plain = tiny(router, latent_capacity_factor=0.25, router_teacher="itself" if router == "topk" else None)
    assert torch.equal(model.eval()(tokens).logits, plain(tokens).logits)  # it has no part in anything else
    seen = RouterInput(None, tokens, tokens.roll(1), torch.arange(45)[None], None)
    taught = TEACHERS[teacher](0.25).choose(seen)
    for progress in (0.0, TAUGHT - 1e-6, TAUGHT):
        model.train().begin_step(progress), plain.train().begin_step(progress)
        out, own = (each(tokens[:, :-4], targets=tokens[:, 1:]) for each in (model, plain))
        if progress < TAUGHT:
            assert torch.equal(out.routed[0, 1:-1], taught[0, 1:-5]) and not torch.equal(out.routed, own.routed)
            wanted = torch.nn.functional.binary_cross_entropy(out.router_weight, out.routed.float())
            torch.testing.assert_close(out.router_loss, wanted, atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(out.routed, own.routed) and out.router_loss == own.router_loss


@pytest.mark.parametrize("router", ["topk", "threshold"])
def test_at_first_the_router_learns_to_foresee_surprise(router):
    """The highest scores are routed. What they shall be: highest where the model needs most nats for the next byte."""
    tokens = random_tokens(2, 44)
    wants = {name: tiny(router, router_teacher=name, latent_capacity_factor=0.25) for name in ("surprise", "itself")}
    for progress in (0.0, TAUGHT - 1e-6, TAUGHT):
        outs = []
        for model in wants.values():
            model.train().begin_step(progress)
            outs.append(model(tokens[:, :-4], targets=tokens[:, 1:]))
        assert torch.equal(outs[0].routed, outs[1].routed)
        if progress < TAUGHT:
            model, length = wants["surprise"], tokens.shape[1] - 4
            logits = model(tokens[:, :-4]).logits[:, :, 0]
            nats = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1 : length + 1], reduction="none")
            for out, by in zip(outs, (nats, outs[1].router_weight)):
                best = by.topk(length // 4, dim=1).indices
                wanted = torch.zeros_like(nats).scatter_(1, best, 1)
                loss = torch.nn.functional.binary_cross_entropy(out.router_weight, wanted)
                torch.testing.assert_close(out.router_loss, loss, atol=1e-4, rtol=1e-4)
            assert abs(outs[0].router_loss - outs[1].router_loss) > 1e-3
        else:
            assert outs[0].router_loss == outs[1].router_loss


def test_surprise_leaves_the_choice_as_it_is_where_nothing_is_scored():
    """As in a chat, whose questions are read and not learned: they go on being routed."""
    tokens = random_tokens(2, 44)
    targets = tokens[:, 1:].clone()
    targets[:, :20] = targets[1, 30:] = -100
    model = tiny("topk", latent_capacity_factor=0.25).train()
    model.begin_step(0.0)
    out = model(tokens[:, :-4], targets=targets)
    logits = model(tokens[:, :-4]).logits[:, :, 0].detach()
    nats = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:41], reduction="none")
    wanted = out.routed & (targets[:, :40] < 0)
    for row in range(2):
        scored = torch.where(targets[row, :40] >= 0)[0]
        wanted[row, scored[nats[row, scored].topk(10 - int(wanted[row].sum())).indices]] = True
    loss = torch.nn.functional.binary_cross_entropy(out.router_weight, wanted.float())
    torch.testing.assert_close(out.router_loss, loss, atol=1e-4, rtol=1e-4)


def test_topk_begins_with_surprise_where_nobody_else_is_named():
    assert tiny("topk").config.first_teacher is TEACHERS["surprise"]
    assert tiny("topk", router_teacher="space").config.first_teacher is TEACHERS["space"]
    assert all(tiny(name).config.first_teacher is None for name in ROUTERS if name != "topk")


def test_the_last_letter_of_a_word_is_seen_from_the_byte_after_it():
    text = b"Two cats, 42\n+ a"
    chosen = TEACHERS["last-letter"](0.5).choose(RouterInput(None, ids(text), None, None, None))
    assert [i for i, last in enumerate(chosen[0]) if last] == [2, 7, 11]  # of the last byte nobody knows
    first = TEACHERS["first-letter"](0.5).choose(RouterInput(None, ids(text), ids(b" " + text[:-1]), None, None))
    assert [i for i, starts in enumerate(first[0]) if starts] == [0, 4, 10, 15]


def test_the_capacity_rises_step_by_step():
    model, tokens = tiny("topk", latent_capacity_start=1 / 16, latent_capacity_factor=1 / 4), random_tokens(1, 64)
    seen = []
    for progress in (i / 1000 for i in range(1001)):
        model.train().begin_step(progress)
        seen.append((model.router.rule.capacity, model.router.rule.teacher.slots(64)))
    assert seen[0] == (1 / 16, 4) and seen[int(1000 * RISEN) :] == [(1 / 4, 16)] * 201
    assert seen == sorted(seen) and len(set(seen)) == 13 and seen[400] == (5 / 32, 10)  # half of the way
    for progress, slots in ((0.0, 4), (0.4, 10), (0.79, 15)):
        model.begin_step(progress)
        assert model(tokens).slots == slots
    assert torch.equal(model.eval()(tokens).routed, tiny("topk")(tokens).routed)
    plain = tiny("topk")
    assert {plain.begin_step(i / 10) for i in range(2, 8)} == {(1, (False, False, 0.5))}


def test_no_router_loss_for_other_rules():
    for rule in ROUTERS:
        if ROUTERS[rule](0.5).teacher is None and ROUTERS[rule].scorer == "linear":
            router, routing = route(rule, torch.tensor([[BOS, 65, END_OF_TURN, 66]]), training=True)
            assert router.loss(routing) == 0
