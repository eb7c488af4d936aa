"""Flags of the bundled train.py and validate.py: timm's names and defaults.

The flags are those of timm v1.0.28's scripts, and `SINCE_V1_0_28`. One default differs: `--device` is `auto` (npu, else
cuda, else cpu; the choice is printed with its reason), where timm has `cuda`. Flags of timm's that the bundled scripts
do not implement are known by name and refused with the way out. This file imports neither torch nor timm, so that
`--help` is immediate.
"""
import argparse
from typing import Any, Dict, List, Optional

from seresnet_timm.argument_parser import ArgumentParser, KeyValues
from seresnet_timm.errors import UsageError

# Flags that only timm's own scripts implement, with timm's defaults (an args.yaml that timm wrote holds all of them).
TIMM_ONLY_TRAIN = {
    'torchscript': False, 'fuser': '',
    'naflex_loader': False, 'naflex_train_seq_lens': [128, 256, 576, 784, 1024], 'naflex_max_seq_len': 576,
    'naflex_patch_sizes': None, 'naflex_patch_size_probs': None, 'naflex_loss_scale': 'linear',
    'naflex_patchify_channels_first': False,
    'stop_epoch': None, 'save_epochs': None,
}
# Flags that timm's train.py got after v1.0.28, so that the script of that release does not have them
SINCE_V1_0_28 = frozenset("""
    stop_epoch save_epochs train_img_sizes train_batch_sizes train_size_probs train_size_schedule
    train_size_schedule_spread train_size_random_mix train_batches_per_epoch variable_batch_loss_scale
""".split())
OWN_VALIDATE = frozenset(('device_modules',))  # a flag of timm's train.py only
TIMM_ONLY_VALIDATE = {
    'torchscript': False, 'aot_autograd': False, 'fuser': '', 'tf_preprocessing': False,
    'naflex_loader': False, 'naflex_max_seq_len': 576,
}


class TimmOnly(argparse.Action):
    """A flag that only timm's own script implements: refused, with the way out."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise UsageError(timm_only_message(option_string, parser.timm_script))


class OneOrMore(argparse.Action):
    """A flag that takes several values; one is stored as itself, as by timm's flag for one."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def timm_only_message(flag: str, script: str) -> str:
    return (f"{flag} is a flag of timm's {script} that the bundled script does not have: run timm's own with "
            '--scripts timm (`seresnet-timm scripts fetch` gets it).')


def bundled_only_message(flag: str, script: str) -> str:
    return (f"{flag} is a flag that this release of timm's {script} does not have, the bundled one has it: run that "
            'with --scripts bundled, or leave it out.')


def train_parser(prog: Optional[str] = None) -> ArgumentParser:
    """Parser of the bundled train.py."""
    parser = ArgumentParser(
        prog=prog, usage='%(prog)s [options]', description='Train an image classifier (timm flags).')
    parser.timm_script = 'train.py'
    _add_config(parser)

    group = parser.add_argument_group('Data')
    arg = group.add_argument
    _add_data_source(group)
    arg('--train-split', metavar='NAME', default='train', help='training split, a folder of the root')
    arg('--val-split', metavar='NAME', default='validation',
        help="validation split, a folder of the root; 'validation' finds 'val' too; '' trains without evaluation")
    arg('--train-num-samples', type=int, metavar='N', help='number of images of a training split that is a stream')
    arg('--val-num-samples', type=int, metavar='N', help='number of images of a validation split that is a stream')

    group = parser.add_argument_group('Model')
    arg = group.add_argument
    arg('--model', metavar='NAME', default='resnet50', help='model to train')
    arg('--pretrained', action='store_true', help="start from the model's pretrained weights")
    arg('--pretrained-path', metavar='PATH', help='start from this file, adapting the classifier as for --pretrained')
    arg('--initial-checkpoint', metavar='PATH', default='',
        help='start from the weights in this file, which must fit the whole model')
    arg('--resume', metavar='PATH', default='',
        help="continue a run exactly where this checkpoint was saved; auto: the newest checkpoint in the run's folder")
    arg('--no-resume-opt', action='store_true', help='with --resume: a new optimizer, not the one in the checkpoint')
    _add_model_shape(group)
    arg('--head-init-scale', type=float, help="factor for the classifier's initial weights (default: 1)")
    arg('--head-init-bias', type=float, help="the classifier's initial bias (default: the model's)")
    arg('-b', '--batch-size', type=int, default=128, metavar='N',
        help='training images of a batch, of each process; an optimizer step takes this x processes x '
             '--grad-accum-steps')
    arg('-vb', '--validation-batch-size', type=int, metavar='N',
        help='validation images of a batch, of each process (default: --batch-size)')
    arg('--grad-accum-steps', type=int, default=1, metavar='N',
        help='batches whose gradients are averaged for one optimizer step')
    arg('--grad-checkpointing', action='store_true',
        help='compute activations again in the backward pass: less memory, more time')
    _add_execution(group)

    group = parser.add_argument_group('Device and precision')
    arg = group.add_argument
    _add_device(group)
    arg('--no-ddp-bb', action='store_true', help='do not broadcast buffers from rank 0 in every step (DDP)')
    arg('--synchronize-step', action='store_true', help='wait for the device after every step, for exact step times')
    arg('--local_rank', type=int, default=0, help=argparse.SUPPRESS)  # torchrun sets the environment instead

    group = parser.add_argument_group('Optimizer')
    arg = group.add_argument
    arg('--opt', default='sgd', metavar='NAME', help="a timm optimizer; 'sgd' is Nesterov, 'momentum' is not")
    arg('--opt-eps', type=float, metavar='EPS',
        help="small number that the optimizer adds to a divisor (default: the optimizer's)")
    arg('--opt-betas', type=float, nargs='+', metavar='BETA',
        help="factors of the moving averages of Adam-like optimizers (default: the optimizer's)")
    arg('--momentum', type=float, default=0.9, help='momentum of the optimizer')
    arg('--weight-decay', type=float, default=2e-5,
        help='weight decay; biases and BatchNorm are exempt unless --opt-kwargs filter_bias_and_bn=False')
    arg('--clip-grad', type=float, metavar='NORM',
        help='largest gradient norm, or value: see --clip-mode (default: no clipping)')
    arg('--clip-mode', default='norm', choices=('norm', 'value', 'agc'),
        help='how --clip-grad clips: norm of all gradients, value, or agc: adaptively, by the norm of each weight')
    arg('--layer-decay', type=float,
        help='factor for the learning rate from each layer to the one below it (default: none)')
    arg('--layer-decay-min-scale', type=float, default=0, help='smallest factor of --layer-decay')
    arg('--layer-decay-no-opt-scale', type=float,
        help='layers whose factor of --layer-decay is below this are not trained')
    arg('--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V',
        help='further arguments of the optimizer, e.g. nesterov=False')

    group = parser.add_argument_group('Learning rate schedule')
    arg = group.add_argument
    arg('--sched', default='cosine', metavar='NAME', help='a timm schedule: cosine, tanh, step, multistep, poly, wsd')
    arg('--sched-on-updates', action='store_true',
        help='change the learning rate after every optimizer step, not after every epoch')
    arg('--lr', type=float, help='learning rate (default: --lr-base x global batch size / --lr-base-size)')
    arg('--lr-base', type=float, default=0.1,
        help='learning rate for a global batch of --lr-base-size images, without --lr')
    arg('--lr-base-size', type=int, default=256, help='global batch size that --lr-base is for')
    arg('--lr-base-scale', default='', metavar='KIND',
        help='how --lr-base scales with the batch size: linear or sqrt (default: by optimizer)')
    arg('--lr-noise', type=float, nargs='+', metavar='PCT',
        help='where noise is added to the learning rate: start, or start and end, as shares of the epochs, 0 to 1')
    arg('--lr-noise-pct', type=float, default=0.67, help='largest share by which the noise changes the learning rate')
    arg('--lr-noise-std', type=float, default=1.0, help='standard deviation of the noise')
    arg('--lr-cycle-mul', type=float, default=1.0,
        help='factor for the length of a cycle of the schedule after each cycle')
    arg('--lr-cycle-decay', type=float, default=0.5, help='factor for the learning rate of a cycle after each cycle')
    arg('--lr-cycle-limit', type=int, default=1, help='number of cycles of the schedule')
    arg('--lr-k-decay', type=float, default=1.0, help='k-decay: exponent of the position in a cosine or poly cycle')
    arg('--warmup-lr', type=float, default=1e-5, help='learning rate at the start of the warm-up')
    arg('--min-lr', type=float, default=0, help='learning rate at the end of the schedule')
    arg('--epochs', type=int, default=300, metavar='N',
        help='epochs of the schedule; --cooldown-epochs, and with --warmup-prefix the warm-up, are added')
    arg('--epoch-repeats', type=float, default=0., metavar='N',
        help='repetitions of the dataset in an epoch, for datasets that are streams; 0: none')
    arg('--start-epoch', type=int, metavar='N',
        help='number of the first epoch, from 0 (default: 0, or where --resume goes on)')
    arg('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='EPOCH',
        help='epochs at which --sched multistep multiplies the learning rate by --decay-rate')
    arg('--decay-epochs', type=float, default=90, help='epochs between two steps of --sched step')
    arg('--warmup-epochs', type=int, default=5, metavar='N',
        help='epochs in which the learning rate rises from --warmup-lr')
    arg('--warmup-prefix', action='store_true', help='warm-up epochs come before --epochs, not within them')
    arg('--cooldown-epochs', type=int, default=0, metavar='N', help='further epochs with the least learning rate')
    arg('--patience-epochs', type=int, default=10, metavar='N',
        help='epochs without a better metric after which --sched plateau lowers the learning rate')
    arg('--decay-rate', '--dr', type=float, default=0.1,
        help='factor for the learning rate, of --sched step, multistep and plateau; exponent of poly')

    group = parser.add_argument_group('Augmentation and regularization')
    arg = group.add_argument
    arg('--no-aug', action='store_true', help='no augmentation: training images are resized and cropped at the center')
    arg('--train-crop-mode', metavar='MODE',
        help='random crop: rrc (resized crop), rkrc or rkrr (keep the ratio, then crop) (default: rrc)')
    arg('--scale', type=float, nargs='+', default=[0.08, 1.0],
        help='share of the area of the image that the random crop covers: smallest and largest')
    arg('--ratio', type=float, nargs='+', default=[3. / 4., 4. / 3.],
        help='width / height of the random crop: smallest and largest')
    arg('--hflip', type=float, default=0.5, metavar='P', help='probability of a horizontal flip')
    arg('--vflip', type=float, default=0., metavar='P', help='probability of a vertical flip')
    arg('--color-jitter', type=float, default=0.4, metavar='F',
        help='strength of the changes of brightness, contrast and saturation')
    arg('--color-jitter-prob', type=float, metavar='P', help='probability of --color-jitter (default: always)')
    arg('--grayscale-prob', type=float, metavar='P', help='probability of a grey image (default: 0)')
    arg('--gaussian-blur-prob', type=float, metavar='P', help='probability of a blurred image (default: 0)')
    arg('--aa', metavar='POLICY', help="AutoAugment policy, e.g. 'rand-m7-mstd0.5', 'original', 'augmix-m5-w4'; "
        "'ta_wide' is torchvision's TrivialAugment")
    arg('--aug-repeats', type=float, default=0,
        help='repetitions of each image in an epoch, with another augmentation; 0: none; several processes only')
    arg('--aug-splits', type=int, default=0, metavar='N',
        help='parts of a batch with separate augmentation; 0: none, else at least 2')
    arg('--jsd-loss', action='store_true',
        help='Jensen-Shannon divergence over the parts of --aug-splits, beside cross entropy')
    arg('--bce-loss', action='store_true',
        help='binary cross entropy of each class, in the place of cross entropy over all')
    arg('--bce-sum', action='store_true', help='sum the binary cross entropy over the classes, not their mean')
    arg('--bce-target-thresh', type=float,
        help='targets above this become 1 for --bce-loss, others 0 (default: no change)')
    arg('--bce-pos-weight', type=float,
        help='weight of the classes that are present for --bce-loss (default: 1)')
    arg('--reprob', type=float, default=0., metavar='P', help='probability that a random area is erased')
    arg('--remode', default='pixel', metavar='MODE',
        help='fill of erased areas: const is black, rand one colour, pixel noise')
    arg('--recount', type=int, default=1, metavar='N', help='largest number of erased areas per image')
    arg('--resplit', action='store_true', help='no random erasing in the first augmentation split')
    arg('--mixup', type=float, default=0.0, metavar='ALPHA', help='alpha of mixup, which blends two images; 0: off')
    arg('--cutmix', type=float, default=0.0, metavar='ALPHA',
        help='alpha of cutmix, which pastes a part of another image; 0: off')
    arg('--cutmix-minmax', type=float, nargs='+', metavar='RATIO',
        help='least and largest share of the side that cutmix pastes, instead of --cutmix')
    arg('--mixup-prob', type=float, default=1.0, metavar='P', help='probability that a batch has mixup or cutmix')
    arg('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='probability of cutmix, where both are on')
    arg('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem', 'half'),
        help='what gets the same mixing: the whole batch, pairs of images, each image, or half of the batch')
    arg('--mixup-off-epoch', type=int, default=0, metavar='N',
        help='epoch from which mixup and cutmix are off; 0: never')
    arg('--smoothing', type=float, default=0.1, help='label smoothing: share of the target that all classes get')
    arg('--train-interpolation', default='random', metavar='NAME',
        help='resize filter in training; random: bilinear or bicubic, drawn for each image')
    arg('--drop', type=float, default=0.0, metavar='P', help='probability of dropout')
    arg('--drop-connect', type=float, metavar='P', help=argparse.SUPPRESS)
    arg('--drop-path', type=float, metavar='P',
        help="probability that a residual branch is left out (default: the model's)")
    arg('--drop-block', type=float, metavar='P',
        help="probability that an area of features is set to 0 (default: the model's)")

    group = parser.add_argument_group('Image sizes')
    arg = group.add_argument
    arg('--train-img-sizes', type=int, nargs='+', metavar='N',
        help='train on batches of these image sizes; evaluation stays at --img-size')
    arg('--train-batch-sizes', type=int, nargs='+', metavar='N',
        help='images of a batch at each of these sizes (default: --batch-size)')
    arg('--train-size-probs', type=float, nargs='+', metavar='P',
        help='weights with which the sizes are drawn (default: all the same)')
    arg('--train-size-schedule', default='constant', choices=('constant', 'progressive'),
        help='draw from all sizes in every epoch, or go from the first to the last over --epochs')
    arg('--train-size-schedule-spread', type=float, default=0.65, metavar='S',
        help='standard deviation of the size that --train-size-schedule progressive draws, in steps of the list of '
             'sizes; 0: one size per epoch')
    arg('--train-size-random-mix', type=float, default=0.1, metavar='P',
        help='share of the batches whose size --train-size-schedule progressive draws from all')
    arg('--train-batches-per-epoch', '--train-steps-per-epoch', type=int, metavar='N',
        help='batches of an epoch, with --train-img-sizes (default: as many as there are images for)')
    arg('--variable-batch-loss-scale', default='none', choices=('none', 'sqrt', 'linear'),
        help='multiply the loss of a batch by its size, or the root of it, divided by the average')

    group = parser.add_argument_group('Batch norm')
    arg = group.add_argument
    arg('--bn-momentum', type=float, help="momentum of BatchNorm's running statistics (default: the model's)")
    arg('--bn-eps', type=float, help="small number that BatchNorm adds to the variance (default: the model's)")
    arg('--sync-bn', action='store_true', help='BatchNorm over the batches of all processes')
    arg('--dist-bn', default='reduce', choices=('broadcast', 'reduce', ''),
        help='running statistics of BatchNorm after an epoch: broadcast: those of rank 0 for all; reduce: the mean of '
             "all processes; '': each keeps its own")
    arg('--split-bn', action='store_true', help='separate BatchNorm for each augmentation split')

    group = parser.add_argument_group('Exponential moving average')
    arg = group.add_argument
    arg('--model-ema', action='store_true', help='keep a moving average of the weights, evaluate it too, and save it')
    arg('--model-ema-force-cpu', action='store_true',
        help='keep the moving average of --model-ema in host memory, and do not evaluate it')
    arg('--model-ema-decay', type=float, default=0.9998, help='share of the average that each step keeps')
    arg('--model-ema-warmup', action='store_true',
        help='let the decay rise from 0 to --model-ema-decay in the first steps')

    group = parser.add_argument_group('Distillation')
    arg = group.add_argument
    arg('--kd-model-name', metavar='NAME',
        help='teacher: a timm name with pretrained weights, hf-hub:org/name, modelscope:org/name, a checkpoint, '
             'or the folder of a run')
    arg('--kd-distill-type', default='logit', choices=('logit', 'feature', 'token'),
        help='what the student learns from the teacher: its outputs, its features, or its outputs with a second '
             'classifier')
    arg('--kd-loss-type', default='kl', choices=('kl',), help='loss of logit distillation: Kullback-Leibler divergence')
    arg('--distill-loss-weight', type=float, metavar='W',
        help='weight of the distillation (default: 1, or 1 - --task-loss-weight where that is given alone)')
    arg('--task-loss-weight', type=float, metavar='W', help="weight of the student's own loss (default: 1)")
    arg('--kd-temperature', type=float, default=4.0, metavar='T',
        help='temperature: divisor of the outputs of teacher and student before the softmax')
    arg('--kd-student-feature-dim', type=int, metavar='N',
        help="length of the student's feature vector, before its classifier, for --kd-distill-type feature "
             '(default: that of its network)')
    arg('--kd-teacher-feature-dim', type=int, metavar='N',
        help="length of the teacher's feature vector, before its classifier, for --kd-distill-type feature "
             '(default: that of its network)')
    arg('--kd-token-distill-type', default='soft', choices=('soft', 'hard'),
        help="target of token distillation: soft is the teacher's probabilities, hard its best class")

    group = parser.add_argument_group('Run')
    arg = group.add_argument
    arg('--seed', type=int, default=42, help='seed of all random numbers; each process adds its rank')
    arg('--worker-seeding', default='all', metavar='MODE',
        help='random generators that a worker seeds: all is Python, NumPy and torch, part is NumPy only')
    arg('--log-interval', type=int, default=50, metavar='N', help='optimizer steps between log lines')
    arg('--val-interval', type=int, default=1, metavar='N', help='epochs between evaluations')
    arg('--recovery-interval', type=int, default=0, metavar='N',
        help='optimizer steps between checkpoints in the middle of an epoch (recovery-*.pth.tar); 0: none')
    arg('--checkpoint-hist', type=int, default=10, metavar='N', help='number of checkpoints to keep, the best ones')
    _add_loader(group)
    arg('--use-multi-epochs-loader', action='store_true', help='keep the loader running between epochs')
    arg('--save-images', action='store_true',
        help="save a batch of training images as a picture in the run's folder, with each log line")
    arg('--output', metavar='DIR', default='', help='folder of runs (default: ./output/train)')
    arg('--experiment', metavar='NAME', default='', help='folder of this run (default: date-model-size)')
    arg('--eval-metric', default='top1', metavar='NAME', help='metric that selects the best checkpoint')
    arg('--tta', type=int, default=0, metavar='N', help='factor of test-time augmentation (oversampling); 0: off')
    arg('--log-wandb', action='store_true', help='log the epochs to Weights & Biases')
    arg('--wandb-project', help='project of Weights & Biases')
    arg('--wandb-tags', nargs='+', default=[], help='tags of the run in Weights & Biases')
    arg('--wandb-resume-id', default='', help='id of the run of Weights & Biases to continue')

    _add_timm_only(parser, TIMM_ONLY_TRAIN)
    return parser


def validate_parser(prog: Optional[str] = None) -> ArgumentParser:
    """Parser of the bundled validate.py."""
    parser = ArgumentParser(
        prog=prog, usage='%(prog)s [options]', description='Evaluate an image classifier (timm flags).')
    parser.timm_script = 'validate.py'

    group = parser.add_argument_group('Data')
    arg = group.add_argument
    _add_data_source(group)
    arg('--split', metavar='NAME', default='validation', help="split, a folder of the root; finds 'val' too")
    arg('--num-samples', type=int, metavar='N', help='number of images of a split that is a stream')

    group = parser.add_argument_group('Model')
    arg = group.add_argument
    arg('-m', '--model', metavar='NAME', default='dpn92', help='model to evaluate')
    arg('--pretrained', action='store_true', help="the model's pretrained weights (default without --checkpoint)")
    arg('--checkpoint', metavar='PATH', default='', help='checkpoint to evaluate; of a folder every checkpoint in it')
    arg('--use-ema', action='store_true', help='evaluate the moving average of the weights, not the weights themselves')
    _add_model_shape(group, several_sizes=True)
    arg('--use-train-size', action='store_true',
        help="the model's input size in training, where it has another one for tests")
    arg('--crop-mode', metavar='MODE',
        help="how an image becomes square: squash, border or center (default: the model's)")
    arg('--crop-border-pixels', type=int, metavar='N', help='border that --crop-mode border cuts off')
    arg('-b', '--batch-size', type=int, default=256, metavar='N', help='images of a batch, of each process')
    arg('--test-pool', action='store_true', help="pool the features of larger images with timm's test-time pooling")
    arg('--reparam', action='store_true', help='fuse the branches of models that timm can reparameterize')
    _add_execution(group)

    group = parser.add_argument_group('Device and precision')
    arg = group.add_argument
    _add_device(group)
    arg('--num-gpu', type=int, default=1, help=argparse.SUPPRESS)

    group = parser.add_argument_group('Run')
    arg = group.add_argument
    arg('--seed', type=int, default=42, help='seed of all random numbers; each process adds its rank')
    arg('--log-freq', type=int, default=10, metavar='N', help='batches between log lines')
    _add_loader(group)
    arg('--results-file', metavar='FILE', default='', help='file to write the results to')
    arg('--results-format', default='csv', choices=('csv', 'json'), help='format of --results-file')
    arg('--real-labels', metavar='FILE', default='',
        help='JSON file of the reassessed ("real") labels of the ImageNet validation images')
    arg('--valid-labels', metavar='FILE', default='',
        help='text file of the class indices to evaluate, one per line (default: all)')
    arg('--metrics-avg', choices=('micro', 'macro', 'weighted'),
        help='also compute precision, recall and F1, averaged so (scikit-learn)')
    arg('--retry', action='store_true',
        help='when memory runs out, evaluate again with half the batch size')

    _add_timm_only(parser, TIMM_ONLY_VALIDATE)
    return parser


def _add_config(parser: ArgumentParser) -> None:
    parser.add_argument('-c', '--config', metavar='FILE', default='', help='YAML file of defaults for these flags')


def _add_data_source(group) -> None:
    arg = group.add_argument
    # timm's positional argument, kept for its users
    arg('data', nargs='?', metavar='DIR', help='the same as --data-dir')
    arg('--data-dir', metavar='DIR',
        help='root of the dataset: train/<class>/*, val/<class>/*; or hfds:NAME for --dataset hfds/NAME, wds:DIR for '
             '--dataset wds/ with tars in DIR')
    arg('--dataset', metavar='NAME', default='',
        help='<type>/<name> of a dataset that is not a folder of images, e.g. torch/cifar10, hfds/NAME, wds/')
    arg('--dataset-download', action='store_true', help='download the dataset, if it is torch/... or tfds/...')
    arg('--class-map', metavar='FILE', default='',
        help='text file that names the folder of every class, one per line, in the order of the class indices')
    arg('--input-img-mode', metavar='MODE', help='Pillow mode of the images (default: RGB, with one channel L)')
    arg('--input-key', metavar='KEY',
        help='name of the images in a Hugging Face dataset, or their suffix in WebDataset tars')
    arg('--target-key', metavar='KEY', help='name of the classes there, e.g. label or cls')
    arg('--dataset-trust-remote-code', action='store_true', help='allow a Hugging Face dataset to run its own code')
    arg('--mean', type=float, nargs='+', help="mean of the pixels, for normalization (default: the model's)")
    arg('--std', type=float, nargs='+',
        help="standard deviation of the pixels, for normalization (default: the model's)")
    arg('--interpolation', metavar='NAME', default='', help="resize filter in evaluation (default: the model's)")
    arg('--crop-pct', type=float, help="share of the image that the evaluation crop covers (default: the model's)")


def _add_model_shape(group, several_sizes: bool = False) -> None:
    arg = group.add_argument
    arg('--num-classes', type=int, metavar='N',
        help='number of outputs (default: train: as many as the data has classes; validate: as many as the model has)')
    arg('--gp', metavar='POOL',
        help="global pooling of the features before the classifier, e.g. avg (default: the model's)")
    if several_sizes:
        arg('--img-size', type=int, nargs='+', action=OneOrMore, metavar='N',
            help="side of the square input (default: the model's); several are evaluated one after the other")
    else:
        arg('--img-size', type=int, metavar='N', help="side of the square input (default: the model's)")
    arg('--in-chans', type=int, metavar='N',
        help="channels of the images, e.g. 3 for RGB, 1 for grey (default: the model's)")
    arg('--input-size', type=int, nargs=3, metavar='N', help="input as channels, height, width (default: the model's)")
    arg('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V',
        help='further arguments of the model, e.g. stem_width=32')


def _add_execution(group) -> None:
    arg = group.add_argument
    arg('--channels-last', action='store_true', help='NHWC memory layout (default: on for ResNets on cpu and cuda)')
    arg('--fast-norm', action='store_true',
        help="timm's faster normalization layers, in lower precision where the device has them")
    arg('--torchcompile', nargs='?', const='inductor', metavar='BACKEND',
        help='compile the model with torch.compile (BACKEND without a value: inductor)')
    arg('--torchcompile-mode', metavar='MODE', help="mode of torch.compile, e.g. 'max-autotune'")


def _add_device(group) -> None:
    arg = group.add_argument
    arg('--device', default='auto', help='auto (npu, else cuda, else cpu), npu, cuda, cpu, or with an index: npu:3')
    arg('--device-modules', nargs='+', metavar='MODULE', help='Python modules to import before the device is used')
    arg('--amp', action='store_true',
        help='automatic mixed precision: convolutions and the like in --amp-dtype, weights in float32')
    arg('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='number format of --amp')
    arg('--model-dtype', choices=('float32', 'float16', 'bfloat16'),
        help='number format of weights and activations, without --amp (default: float32)')


def _add_loader(group) -> None:
    arg = group.add_argument
    arg('-j', '--workers', type=int, default=4, metavar='N',
        help='loader workers per process (default: its cores less one, at most 16; on cpu a quarter, at most 4)')
    arg('--pin-mem', action='store_true',
        help='load images into page-locked host memory (default: on for npu and cuda)')
    arg('--no-prefetcher', action='store_true',
        help='copy images to the device in the stream of the training, not in a second one')


def _add_timm_only(parser: ArgumentParser, flags: Dict[str, Any]) -> None:
    for dest in flags:
        parser.add_argument(
            '--' + dest.replace('_', '-'), dest=dest, nargs='*', action=TimmOnly,
            default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def flags_of(parser: ArgumentParser) -> List[str]:
    """Every flag the parser implements, long form."""
    return sorted(
        s for a in parser._actions if not isinstance(a, TimmOnly) for s in a.option_strings if s.startswith('--'))


def defaults_of(verb: str) -> Dict[str, Any]:
    """Every flag of the bundled train.py or validate.py with its default; a script of timm's may lack some."""
    return vars((train_parser() if verb == 'train' else validate_parser()).parse_args([]))
