"""Flags that each work and do not go together, found in the flags alone."""
import pytest

from seresnet_timm.launch.combinations import find_contradictions, find_without_effect
from seresnet_timm.launch.parse import parse


def find(*argv, verb='train', world_size=1):
    line = parse(verb, argv)
    assert not line.problems
    typed = {**line.flags, **line.modelzoo}
    return find_contradictions(
        verb, {**line.defaults, **line.flags}, lambda *names: any(n in typed for n in names), world_size)


@pytest.mark.parametrize('argv, words', (
    (('--in-chans', '4', '--input-img-mode', 'RGBA', '--aa', 'rand-m9'), ('--aa rand-m9', '--in-chans 4')),
    (('--in-chans', '4'), ('--in-chans 4', 'mode L', '--input-img-mode RGBA or CMYK')),
    (('--input-size', '2', '32', '32'), ('--input-size 2 32 32', '--input-img-mode LA')),
    (('--in-chans', '7'), ('--in-chans 7', 'no image file')),
    (('--input-img-mode', 'L'), ('--in-chans 3', 'mode L', '1 channel')),
    (('--in-chans', '1', '--input-size', '3', '32', '32'), ('--input-size 3 32 32', '--in-chans 1')),
    (('--img-size', '64', '--input-size', '3', '32', '32'), ('--img-size 64', '--input-size 3 32 32')),
    (('--mean', '0.5', '0.5'), ('--mean has 2 values', '3 channel', 'give 1 or 3')),
    (('--in-chans', '1', '--std', '.2', '.2', '.2'), ('--std has 3 values', 'give 1.')),
    (('--jsd-loss',), ('--jsd-loss', '--aug-splits 3')),
    (('--aug-splits', '3', '--no-prefetcher'), ('--aug-splits', '--no-prefetcher')),
    (('--aug-splits', '2', '--cutmix', '1'), ('--aug-splits', 'Mixup')),
    (('--split-bn',), ('--split-bn', '--aug-splits')),
    (('--mixup', '.2', '-b', '5'), ('-b 5 is odd',)),
    (('--mixup', '.2', '--mixup-mode', 'half', '--no-prefetcher'), ('--mixup-mode half', '--no-prefetcher')),
    (('--scale', '8', '100'), ('--scale 8.0 100.0', 'at most 1')),
    (('--epochs', '3', '--warmup-epochs', '9'), ('--warmup-epochs 9', '--epochs 3')),
    (('--epochs', '3', '--start-epoch', '3'), ('--start-epoch 3',)),
    (('--sched', 'plateau', '--decay-rate', '2'), ('plateau', '--decay-rate')),
    (('--bce-loss', '--bce-target-thresh', '1'), ('--bce-target-thresh 1 ', 'not exceeded by any target')),
    (('--bce-loss', '--bce-target-thresh', '.95', '--num-classes', '1000'), ('largest of which is 0.9001',)),
    (('--bce-loss', '--bce-target-thresh', '0'), ('exceeded by the targets of absent classes', '--smoothing 0.1')),
    (('--bce-loss', '--bce-target-thresh', '.04', '--num-classes', '2', '--mixup', '.2'), ('of absent classes',)),
))
def test_contradictions(argv, words):
    problem, = find(*argv)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize('argv', (
    ('--in-chans', '1', '--aa', 'rand-m9'), ('--in-chans', '4', '--input-img-mode', 'RGBA'),
    ('--in-chans', '4', '--input-img-mode', 'CMYK', '--mean', '.5', '.5', '.5', '.5', '--std', '.2'),
    ('--in-chans', '1', '--mean', '0.5', '--std', '0.25'), ('--jsd-loss', '--aug-splits', '3'),
    ('--resplit', '--split-bn'),
    ('--epochs', '2'), ('--epochs', '5', '--warmup-epochs', '5'),  # the default warm-up is nobody's wish
    ('--epochs', '3', '--warmup-epochs', '9', '--warmup-prefix'), ('--scale', '.8', '1.2', '--train-crop-mode', 'rkrc'),
    ('--epochs', '3', '--cooldown-epochs', '2', '--start-epoch', '4'),
    ('--img-size', '32', '--input-size', '3', '32', '32'), ('--bce-loss', '--bce-target-thresh', '.2', '--cutmix', '1'),
    ('--bce-loss', '--bce-target-thresh', '0', '--smoothing', '0', '--mixup', '.2'), ('--bce-target-thresh', '1'),
    ('--bce-loss', '--bce-target-thresh', '.04', '--num-classes', '10'),
    ('--bce-loss', '--bce-target-thresh', '1', '--smoothing', '0'),  # which is cross entropy
))
def test_what_goes_together(argv):
    assert find(*argv) == []


def test_all_contradictions_are_named():
    found = ' '.join(find('--jsd-loss', '--mixup', '.2', '--aug-splits', '3'))
    assert '--jsd-loss and mixup exclude each other' in found and 'Mixup and --aug-splits exclude each other' in found


def test_seeds_of_all_processes_fit():
    last = str(2 ** 32 - 1)
    assert find('--seed', last) == [] and '--seed' in find('--seed', last, world_size=2)[0]


def test_evaluation_has_its_own():
    assert find('--in-chans', '4', verb='validate') and find('--mean', '1', '2', verb='validate')


def without_effect(*argv, verb='train'):
    line = parse(verb, argv)
    assert not line.problems
    return list(find_without_effect(
        verb, {**line.defaults, **line.flags}, lambda *names: any(n in line.flags for n in names), line.options))


@pytest.mark.parametrize('argv, cure', (
    (('--clip-mode', 'agc'), ('--clip-grad', '1')),
    (('--resplit',), ('--reprob', '.2')),
    (('--mixup-off-epoch', '3'), ('--cutmix', '1')),
    (('--mixup-switch-prob', '.3', '--mixup', '.2'), ('--cutmix', '1')),
    (('--model-ema-decay', '.9'), ('--model-ema',)),
    (('--bce-sum',), ('--bce-loss',)),
    (('--amp-dtype', 'bfloat16'), ('--amp',)),
    (('--torchcompile-mode', 'default'), ('--torchcompile',)),
    (('--layer-decay-min-scale', '.1'), ('--layer-decay', '.7')),
    (('--decay-milestones', '3', '5'), ('--sched', 'multistep')),
    (('--decay-rate', '.5'), ('--sched', 'step')),
    (('--sched', 'step', '--min-lr', '.1'), ('--sched', 'cosine')),
    (('--sched', 'step', '--lr-cycle-limit', '2'), ('--sched', 'tanh')),
    (('--warmup-epochs', '0', '--warmup-lr', '.1'), ('--warmup-epochs', '2')),
    (('--aa', 'rand-m9', '--color-jitter', '.3'), ('--aa', '3a')),
    (('--train-num-samples', '9'), ('--dataset', 'wds/x')),
    (('--no-resume-opt',), ('--resume', 'x')),
    (('--loss-scale', '8'), ('--amp',)),
    (('--amp', '--amp-dtype', 'bfloat16', '--loss-scale', '8'), ('--amp-dtype', 'float16')),
    (('--model', 'resnet18', '--lean-se', 'on'), ('--model', 'seresnet50_ascend')),
    (('--model', 'resnet18', '--lean-se', 'on'), ('--model', 'hf-hub:org/name')),
))
def test_flags_that_change_nothing(argv, cure):
    (note,) = without_effect(*argv)
    assert note.startswith(next(a for a in reversed(argv) if a.startswith('--')) + ' has no effect with') or (
        'has no effect unless' in note), note
    assert without_effect(*argv, *cure) == []


def test_flags_that_change_nothing_are_told_together_and_defaults_are_not():
    assert without_effect('--no-aug', '--hflip', '.2', '--aa', 'rand-m9') == [
        '--hflip, --aa have no effect with --no-aug (as in timm).']
    assert without_effect('--lr', '.1', '--model', 'resnet18', '-b', '8', '--mixup-off-epoch', '0') == []
    assert without_effect('--amp-dtype', 'bfloat16', '--results-format', 'json', verb='validate') == [
        '--results-format has no effect without --results-file (as in timm).',
        '--amp-dtype has no effect without --amp (as in timm).']
    assert without_effect('--checkpoint-minutes', '0', '--max-bad-images', '3', '--prof', verb='validate') == [
        '--checkpoint-minutes, --max-bad-images, --prof have no effect in an evaluation, only in train.']
    assert without_effect('--fuse-bn', 'on') == ['--fuse-bn has no effect in a training, only in validate.']
    assert without_effect('--fuse-bn', 'on', verb='validate') == []


@pytest.mark.parametrize('argv, told', (
    (('--epochs', '5'), 'The warm-up of 5 epochs is not over when the run of 5 epochs ends'),
    (('--epochs', '1', '--warmup-epochs', '3'), 'The warm-up of 3 epochs is not over when the run of 1 epoch ends'),
    (('--epochs', '6'), None), (('--epochs', '5', '--warmup-epochs', '0'), None), ((), None),
    (('--epochs', '5', '--warmup-prefix'), None), (('--epochs', '5', '--sched', 'none'), None),
))
def test_a_warm_up_that_is_longer_than_the_run_is_told(argv, told):
    notes = without_effect(*argv)
    assert notes == [] if told is None else len(notes) == 1 and notes[0].startswith(told)
