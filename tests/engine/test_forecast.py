"""When a training ends: against a simulated run whose end is known."""
import pytest

from seresnet_timm.engine.forecast import Extent, Forecast

STEP, FIRST, EVALUATION = 0.5, 60., 20.  # seconds


def simulate(extent: Extent, interval: int, epoch: int = 0, update: int = 0, before=()):
    """Pairs (end that was foretold or None, true end) at every log line, of a run with a slow first step."""
    forecast = Forecast(extent, before)
    steps_left = (extent.epochs - epoch) * extent.updates - update
    end = FIRST - STEP + steps_left * STEP + EVALUATION * sum(
        extent.is_evaluated(e) for e in range(epoch, extent.epochs))
    now, told, is_first = 0., [], True
    for e in range(epoch, extent.epochs):
        start = update if e == epoch else 0
        forecast.start_epoch(e, start, now)
        for u in range(start + 1, extent.updates + 1):
            now += FIRST if is_first else STEP
            is_first = False
            if (u - 1) % interval == 0 or u == extent.updates:
                forecast.at_update(u, now)
                told.append((forecast.end(now), end))
        if extent.is_evaluated(e):
            for share in (0.1, 0.6, 1.):
                forecast.at_evaluation(share, now + share * EVALUATION)
                told.append((forecast.end(now + share * EVALUATION), end))
            now += EVALUATION
    assert now == pytest.approx(end)
    return told


@pytest.mark.parametrize('interval', [1, 2, 50])
@pytest.mark.parametrize('val_interval', [1, 3])
def test_end_is_right_from_the_first_figures_on(interval, val_interval):
    """The evaluation is as long as 40 steps: counted before the first by a third of a training image's time."""
    extent = Extent(epochs=7, updates=120, batch_images=10, val_interval=val_interval, val_images=1200)
    told = simulate(extent, interval)
    known = [(end, true) for end, true in told if end is not None]
    assert len(told) - len(known) <= 3  # the slow first steps
    for end, true in known:
        assert end == pytest.approx(true, abs=2 * STEP)


def test_end_after_a_resume_within_an_epoch():
    before = [dict(epoch=0, train_seconds=120., images=1200, fps=20., eval_seconds=20.)]
    extent = Extent(epochs=4, updates=120, batch_images=10, val_images=900)
    told = simulate(extent, 50, epoch=1, update=70, before=before)
    first, true = told[0]
    assert first == pytest.approx(true, abs=2 * STEP)  # at the first line, which follows the slow step
    assert all(end == pytest.approx(true, abs=2 * STEP) for end, true in told)


def test_end_when_only_an_evaluation_is_left():
    forecast = Forecast(Extent(2, 10, 4, val_images=40), [dict(epoch=0, fps=8., eval_seconds=3.)])
    forecast.start_epoch(1, 10, 100.)
    assert forecast.end(100.) == pytest.approx(103.)


def test_end_is_not_known_without_a_step():
    forecast = Forecast(Extent(2, 10, 4))
    forecast.start_epoch(0, 0, 0.)
    assert forecast.end(1.) is None and forecast.images_per_second is None
    forecast.at_update(1, 60.)
    assert forecast.end(60.) is None  # the slow one alone


def test_a_machine_that_gets_slower_is_noticed():
    forecast = Forecast(Extent(100, 100, 4))
    forecast.start_epoch(0, 0, 0.)
    now = 0.
    for update in range(1, 101):
        now += 1.
        forecast.at_update(update, now)
    for epoch in range(1, 5):
        forecast.start_epoch(epoch, 0, now)
        for update in range(10, 101, 10):
            now += 20.
            forecast.at_update(update, now)
    assert 1.85 < forecast.update_seconds < 2 and forecast.images_per_second == pytest.approx(2.)


@pytest.mark.parametrize('interval,best,patience,epochs', (
    (1, 4, 3, 8), (1, 0, 1, 2), (2, 3, 3, 8), (2, 1, 1, 4), (5, 4, 5, 10), (1, None, 3, None), (1, 4, None, None),
    (1, 95, 5, None), (1, 98, 3, None), (30, 29, 61, None)))
def test_epochs_of_a_run_that_gets_no_better(interval, best, patience, epochs):
    """As many as `--patience` lets pass; None where the run ends by itself before."""
    extent = Extent(epochs=100, updates=10, batch_images=4, val_interval=interval, patience=patience)
    found = extent.without_better(best)
    assert (found and found.epochs) == epochs
    if epochs is not None:  # as patience.Patience counts
        assert epochs == next(e for e in range(1, 101) if e % interval == 0 and e - 1 - best >= patience)


def test_the_early_end_is_foreseen():
    forecast = Forecast(Extent(100, 10, 4, val_images=40, patience=3), [dict(epoch=0, fps=4., eval_seconds=3.)])
    forecast.start_epoch(5, 10, 100.)  # its evaluation goes on
    assert forecast.end(100.) == pytest.approx(100 + 94 * 13 + 3)
    assert forecast.early_end(100., 4) == pytest.approx(100 + 2 * 13 + 3)  # epochs 6 and 7
    assert forecast.early_end(100., 5) == pytest.approx(100 + 3 * 13 + 3)
    assert forecast.early_end(100., 96) is None and forecast.early_end(100., None) is None
    assert forecast.early_end(100., 1) is None  # that epoch is over


def test_updates_between_log_points_tell_the_end_and_do_not_change_the_speed_that_a_line_tells():
    """On a CPU: 40 updates an epoch of 3 s, log points at 1 and 40 only."""
    forecast = Forecast(Extent(2, 40, 6))
    forecast.start_epoch(0, 0, now=0.)
    forecast.at_update(1, 20.)  # slow
    assert forecast.end(20.) is None
    for update in range(3, 40, 2):
        forecast.at_update(update, 20. + 3 * (update - 1), is_log=False)
    assert forecast.end(20. + 3 * 38) == pytest.approx(20. + 3 * 79)
    forecast.at_update(40, 20. + 3 * 39)
    assert forecast.images_per_second == pytest.approx(6 / 3.)
