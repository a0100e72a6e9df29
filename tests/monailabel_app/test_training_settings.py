"""How training depends on the number of labels."""

import pytest
from lib.trainers.settings import hold_back, training_settings


@pytest.mark.parametrize(
    ("labels", "replaces", "held_back"),
    [
        (1, False, 0),
        (1, True, 0),
        (2, False, 0),
        (2, True, 1),
        (5, False, 0),
        (5, True, 1),
        (6, False, 1),
        (20, True, 4),
    ],
)
def test_labels_held_back(labels, replaces, held_back):
    assert training_settings(labels, replaces, goes_on=replaces).held_back == held_back


def test_more_labels_train_longer_and_warm_up_within():
    settings = [training_settings(n, False, False) for n in (1, 2, 3, 5, 8, 12, 20, 60)]
    assert [s.steps for s in settings] == sorted(s.steps for s in settings)
    assert all(0 < s.warmup < s.steps / 3 for s in settings)


@pytest.mark.parametrize(("per_epoch", "epochs"), [(1, 80), (50, 2), (500, 1)])
def test_epochs_make_up_the_steps(per_epoch, epochs):
    assert training_settings(1, True, True).epochs(per_epoch) == epochs


def test_a_fresh_head_trains_longer_and_at_full_rates():
    for labels in (1, 3, 20):
        fresh, further = training_settings(labels, True, False), training_settings(labels, True, True)
        assert fresh.steps >= further.steps + 100
        assert fresh.rate == 1.0 and fresh.held_back == further.held_back
    assert further.rate < 1


def test_no_label():
    with pytest.raises(ValueError, match="no usable label"):
        training_settings(0, False, False)


def test_what_is_held_back_stays_and_new_ones_come_from_what_was_not_learnt():
    learnt, held = ["a", "b", "c"], ["d"]
    cases = [*learnt, *held, "e", "f", "g"]
    assert hold_back(cases, 1, learnt, held) == ["d"]
    three = hold_back(cases, 3, learnt, held)
    assert "d" in three and not set(three) & set(learnt)
    assert hold_back(cases[::-1], 3, learnt, held) == three, "whatever the order"


def test_learnt_ones_are_never_taken_and_one_is_always_left_to_learn():
    assert hold_back(["a", "b", "c"], 5, ["a", "b", "c"], ["a"]) == []
    assert len(hold_back(["a", "b", "c"], 5, [], [])) == 2
    assert hold_back(["a"], 1, [], []) == []


@pytest.mark.parametrize(
    ("config", "goes_on", "own_method", "rates"),
    [
        ({}, False, True, (0.001, 0.0005)),
        ({"encoder_lr": 0.0008}, False, True, (0.001, 0.0008)),
        ({"encoder_lr": 0.0}, False, True, (0.001, 0.0)),  # a frozen encoder stays frozen
        ({"encoder_lr": "@lr"}, False, True, (0.001,)),
        ({"network_def": {"encoder": "vit_b"}}, False, True, (0.001, 0.0002)),
        ({}, False, False, (0.001, 0.0002)),
        ({}, True, True, (0.0003, 0.00006)),
    ],
)
def test_litemedsams_encoder_learns_faster_from_the_start(config, goes_on, own_method, rates):
    settings = training_settings(20, replaces=goes_on, goes_on=goes_on)
    bundle = {"lr": 0.001, "encoder_lr": 0.0002, "network_def": {"encoder": "vit_t"}}
    assert tuple(settings.rates({**bundle, **config}, own_method).values()) == pytest.approx(rates)
