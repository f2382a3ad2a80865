"""The learning rate over a run, against values that are written out."""

import pytest

from pico.base.config import TrainConfig
from pico.base.errors import PicoError
from pico.base.schedules import SCHEDULES

WRITTEN_OUT = {
    "linear": {0: 1, 0.25: 0.75, 0.5: 0.5, 1: 0},
    "wsd": {0: 1, 0.3: 1, 0.6: 1, 0.7: 0.75, 0.8: 0.5, 0.9: 0.25, 1: 0},
    "steps": {0: 0, 0.03: 0.5, 0.06: 1, 0.5: 1, 0.7999: 1, 0.8: 0.316, 0.8999: 0.316, 0.9: 0.1, 1: 0.1},
    "warmdown": {0: 1, 0.5: 1, 0.8: 1, 0.85: 0.75, 0.9: 0.5, 0.95: 0.25, 1: 0},
    "cosine": {0: 1, 0.25: 0.8535533905932737, 0.5: 0.5, 0.75: 0.1464466094067262, 1: 0},
}


def test_every_schedule_has_the_values_that_are_written_out():
    assert SCHEDULES.keys() == WRITTEN_OUT.keys()
    for name, values in WRITTEN_OUT.items():
        assert {at: SCHEDULES[name](at) for at in values} == pytest.approx(values, abs=1e-12), name


def test_the_warm_up_is_the_settings_or_the_schedules_own():
    assert {name: TrainConfig(schedule=name, warmup_steps=7).warmup for name in SCHEDULES} == {
        "linear": 7,
        "wsd": 7,
        "steps": 0,
        "warmdown": 7,
        "cosine": 7,
    }
    with pytest.raises(PicoError, match="schedule = 'sqrt': input should be 'linear', 'wsd', 'steps', "):
        TrainConfig.build(schedule="sqrt")
