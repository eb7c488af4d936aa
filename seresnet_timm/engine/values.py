"""Which values a flag takes: the one table of ranges, names and paths, for every verb, on the command line and in YAML

`VALUES` has a rule for the name of an argument, `VERB.name` one for the argument of a verb that means something else.
A number without a rule must be finite. `UNITS` has the unit of a number, for `seresnet-timm help VERB FLAG`; some have
none. A test compares the names with timm's. This file imports neither torch nor timm.
"""
from typing import Dict

from seresnet_timm.engine.rules import (
    ConfigFile,
    Device,
    Existing,
    ExistingText,
    FilePath,
    FolderName,
    GitName,
    Model,
    ModelName,
    Names,
    Number,
    Output,
    Rule,
    ShareOrCount,
    Text,
    TextFile,
)

# --- numbers ----------------------------------------------------------------------------------------------------------

COUNT = Number(1)
NOT_NEGATIVE = Number(0)
POSITIVE = Number(above=0)
SHARE = Number(0, 1)
SHARE_BELOW_ONE = Number(0, below=1)
SHARE_ABOVE_ZERO = Number(above=0, high=1)
SIDES = Number(above=0, counts=(2,), ascending=True)

# --- names ------------------------------------------------------------------------------------------------------------

FILTERS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'constant', 'plateau', 'poly', 'wsd', 'rsqrt', 'none')
# first part of a policy; timm reads the rest of it; ta_wide is torchvision's
POLICIES = ('rand', 'augmix', 'original', 'originalr', 'v0', 'v0r', '3a', 'ta_wide')
IMAGE_MODES = ('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F')
DTYPES = ('float32', 'float16', 'bfloat16')
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')

# kinds of findings in a dataset
FINDINGS = ('unreadable', 'empty', 'damaged', 'wrong-type', 'doubtful', 'giant', 'leaked', 'two-classes',
            'class-mismatch', 'empty-class', 'odd-folder', 'duplicate', 'few-images', 'left-out')
SHA256 = '[0-9a-fA-F]{64}'
LICENSE = Text('[a-z0-9][a-z0-9.+-]*', 'an identifier', 'one such as apache-2.0, mit or cc-by-4.0')
CHIP = Text(r'(?i:ascend)?\d{3}[0-9A-Za-z_]*', 'a chip',
            'one such as Ascend910A, Ascend910B3 or Ascend310P3 (`npu-smi info` shows it)')
REPOSITORY = Text(r'[^/\s]+/\S+', 'the name of a model on the Hub', 'organisation/name', is_judged_later=True)

# --- the table --------------------------------------------------------------------------------------------------------

VALUES: Dict[str, Rule] = {
    # data and input
    'train_num_samples': COUNT, 'val_num_samples': COUNT, 'num_samples': COUNT,
    'mean': Number(), 'std': POSITIVE, 'crop_pct': SHARE_ABOVE_ZERO, 'crop_border_pixels': NOT_NEGATIVE,
    'num_classes': COUNT, 'img_size': COUNT, 'in_chans': COUNT, 'input_size': COUNT,
    'interpolation': Names(FILTERS, empty=True), 'train_interpolation': Names((*FILTERS, 'random'), empty=True),
    'crop_mode': Names(('center', 'border', 'squash'), empty=True),
    'train_crop_mode': Names(('rrc', 'rkrc', 'rkrr'), empty=True),
    'input_img_mode': Names(IMAGE_MODES, empty=True),
    'batch_size': COUNT, 'validation_batch_size': COUNT, 'workers': NOT_NEGATIVE,
    'worker_seeding': Names(('all', 'part')), 'tta': NOT_NEGATIVE,
    # model
    'head_init_scale': NOT_NEGATIVE, 'drop': SHARE_BELOW_ONE, 'drop_connect': SHARE_BELOW_ONE,
    'drop_path': SHARE_BELOW_ONE, 'drop_block': SHARE_BELOW_ONE, 'bn_momentum': SHARE, 'bn_eps': POSITIVE,
    'dist_bn': Names(('broadcast', 'reduce'), empty=True), 'model_ema_decay': SHARE_BELOW_ONE,
    # device and precision
    'device': Device(), 'amp_dtype': Names(DTYPES[1:]), 'model_dtype': Names(DTYPES),
    'torchcompile_mode': Names(COMPILE_MODES), 'num_gpu': COUNT,
    # optimizer
    'opt_eps': NOT_NEGATIVE,
    'opt_betas': Number(0, below=1, counts=(2, 3)), 'momentum': SHARE, 'weight_decay': NOT_NEGATIVE,
    'clip_grad': POSITIVE, 'clip_mode': Names(('norm', 'value', 'agc')), 'layer_decay': SHARE_ABOVE_ZERO,
    'layer_decay_min_scale': SHARE, 'layer_decay_no_opt_scale': SHARE, 'grad_accum_steps': COUNT,
    # schedule
    'sched': Names(SCHEDULES), 'lr': POSITIVE, 'lr_base': POSITIVE, 'lr_base_size': COUNT,
    'lr_base_scale': Names(('linear', 'sqrt'), empty=True), 'lr_noise': Number(0, counts=(1, 2), ascending=True),
    'lr_noise_pct': NOT_NEGATIVE, 'lr_noise_std': NOT_NEGATIVE, 'lr_cycle_mul': POSITIVE, 'lr_cycle_decay': SHARE,
    'lr_cycle_limit': COUNT, 'lr_k_decay': POSITIVE, 'warmup_lr': NOT_NEGATIVE, 'min_lr': NOT_NEGATIVE,
    'epochs': COUNT, 'epoch_repeats': NOT_NEGATIVE, 'start_epoch': NOT_NEGATIVE,
    'decay_milestones': Number(0, ascending=True),
    'decay_epochs': POSITIVE, 'warmup_epochs': NOT_NEGATIVE, 'cooldown_epochs': NOT_NEGATIVE,
    'patience_epochs': NOT_NEGATIVE, 'decay_rate': POSITIVE,
    # augmentation and loss
    'scale': SIDES, 'ratio': SIDES, 'hflip': SHARE, 'vflip': SHARE, 'color_jitter': NOT_NEGATIVE,
    'color_jitter_prob': SHARE, 'grayscale_prob': SHARE, 'gaussian_blur_prob': SHARE,
    'aa': Names(POLICIES, empty=True, first_part=True), 'aug_repeats': NOT_NEGATIVE, 'aug_splits': Number(2, also=(0,)),
    'bce_target_thresh': SHARE, 'bce_pos_weight': POSITIVE,
    'reprob': SHARE, 'remode': Names(('const', 'pixel', 'rand'), empty=True, ignores_case=True), 'recount': COUNT,
    'mixup': NOT_NEGATIVE, 'cutmix': NOT_NEGATIVE, 'cutmix_minmax': Number(0, 1, counts=(2,), ascending=True),
    'mixup_prob': SHARE, 'mixup_switch_prob': SHARE, 'mixup_off_epoch': NOT_NEGATIVE,
    'mixup_mode': Names(('batch', 'pair', 'elem', 'half')), 'smoothing': SHARE_BELOW_ONE,
    # run
    'seed': Number(0, 2 ** 32 - 1), 'log_interval': COUNT, 'log_freq': COUNT, 'val_interval': COUNT,
    'recovery_interval': NOT_NEGATIVE, 'checkpoint_hist': COUNT, 'eval_metric': Names(('top1', 'top5', 'loss')),
    'results_format': Names(('csv', 'json')), 'metrics_avg': Names(('micro', 'macro', 'weighted')),
    # flags that only timm's scripts have
    'naflex_train_seq_lens': COUNT, 'naflex_max_seq_len': COUNT, 'naflex_patch_sizes': COUNT,
    'naflex_patch_size_probs': SHARE,
    # image sizes
    'train_img_sizes': COUNT, 'train_batch_sizes': COUNT, 'train_size_probs': NOT_NEGATIVE,
    'train_size_schedule_spread': NOT_NEGATIVE, 'train_size_random_mix': SHARE, 'train_batches_per_epoch': COUNT,
    # distillation
    'kd_temperature': POSITIVE, 'kd_student_feature_dim': COUNT,
    'kd_teacher_feature_dim': COUNT, 'distill_loss_weight': NOT_NEGATIVE, 'task_loss_weight': NOT_NEGATIVE,
    # launcher
    'nproc': Number(1, whole=True, also=('auto',)), 'nnodes': COUNT, 'node_rank': NOT_NEGATIVE,
    'master_port': Number(1, 65535), 'rdzv_timeout': COUNT, 'max_restarts': NOT_NEGATIVE, 'max_bad_steps': COUNT,
    'patience': COUNT,
    'checkpoint_minutes': NOT_NEGATIVE, 'hang_timeout': NOT_NEGATIVE, 'data_timeout': NOT_NEGATIVE,
    'max_bad_images': ShareOrCount(), 'loss_scale': Number(above=0, also=(-1,)),
    'amp_level': Names(('O0', 'O1', 'O2')), 'cpu_affinity': Names(('auto', 'cores', 'none')),
    'fast_jpeg': Names(('auto', 'on', 'off')), 'fast_step': Names(('auto', 'off')),
    'fuse_bn': Names(('auto', 'on', 'off')), 'lean_se': Names(('auto', 'on', 'off')), 'modelzoo_gpu': NOT_NEGATIVE,
    # paths that are read
    **dict.fromkeys(('data', 'data_dir', 'model', 'scripts', 'file', 'timm_scripts', 'target'), FilePath()),
    **dict.fromkeys((
        'src', 'source', 'run', 'against', 'compare.data_dir', 'report.data_dir', 'average.data_dir', 'split.dir',
        'check-data.dir'), Existing()),
    **dict.fromkeys(('initial_checkpoint', 'pretrained_path', 'checkpoint'), Existing(also=('',))),
    'resume': Existing(also=('', 'auto')), 'diagnose.target': Existing(also=('-',)),
    'image': Existing(is_link_enough=True), 'kd_model_name': Model(also=('',)),
    **dict.fromkeys(('predict.model', 'explain.model', 'export.model', 'checkpoints', 'compare.checkpoint'), Model()),
    'weights.name': ModelName(),
    'convert.source': Model(takes_names=False), 'inspect.file': Model(takes_names=False, is_judged_later=True),
    **dict.fromkeys(('model_name', 'convert.model', 'inspect.model', 'push.model'), ModelName()),
    'config': ConfigFile(), 'class_map': TextFile(), 'class_names': ExistingText(),
    **dict.fromkeys(('real_labels', 'valid_labels'), ExistingText(also=('',))),
    # outputs
    'experiment': FolderName(),
    'output': Output(is_folder=True), 'prof': Output(is_folder=True), 'dst': Output(is_folder=True),
    'results_file': Output(is_folder=False, may_be_empty=True), 'out': Output(is_folder=False),
    # other verbs
    'topk': COUNT, 'max_side': COUNT, 'quality': Number(1, 100), 'opset': Number(11, 15), 'atc_batch_size': COUNT,
    'seconds': POSITIVE, 'timeout': POSITIVE, 'interval': POSITIVE, 'images': COUNT, 'rounds': COUNT,
    'dtype': Names(DTYPES), 'to': Names(('timm', 'modelzoo', 'safetensors')),
    'prepare.workers': COUNT, 'check-data.workers': COUNT, 'min_images': COUNT,
    'check-data.json': Output(is_folder=False), 'csv': Output(is_folder=False),
    'report.json': Output(is_folder=False), 'markdown': Output(is_folder=False), 'html': Output(is_folder=False),
    'worst': NOT_NEGATIVE, 'maps': NOT_NEGATIVE,
    **dict.fromkeys(('train.output', 'recipe.output'), Output(holds_runs=True, may_be_empty=True)),
    'predict.output': Output(is_folder=False), 'pull.out': Output(is_folder=True),
    'last': Number(2), 'average.out': Output(is_folder=False),
    'convert.target': Output(is_folder=False), 'demo-data.dir': Output(is_folder=True),
    'split.val': Number(above=0, below=1), 'split.out': Output(is_folder=True),
    'compare.loss_scale': POSITIVE, 'rtol': POSITIVE, 'top': COUNT, 'reference_device': Device(),
    'dump': Output(is_folder=False),
    'bench.target': POSITIVE, 'bench.json': Output(is_folder=False), 'bundle': Output(is_folder=False),
    'tuned_file': Output(is_folder=False),
    # names and texts
    'check-data.ignore': Names(FINDINGS), 'license': LICENSE, 'soc': CHIP, 'repo': REPOSITORY,
    'push.revision': GitName(), 'push.tag': GitName(),
    'weights.sha256': Text(f'(?i:sha256:)?{SHA256}', 'a SHA-256', 'its 64 hexadecimal digits', is_judged_later=True),
    'scripts.sha256': Text(f'(train|validate)\\.py={SHA256}', 'a name and a SHA-256',
                           'train.py=HASH and validate.py=HASH, each of 64 hexadecimal digits', is_judged_later=True),
}
# the ModelZoo's names for them
VALUES.update({
    'modelzoo_data_path': VALUES['data_dir'], 'modelzoo_batch_size': COUNT, 'modelzoo_train_epochs': COUNT,
    'modelzoo_learning_rate': VALUES['lr'], 'modelzoo_warm_up_epochs': VALUES['warmup_epochs'],
    'modelzoo_mom': VALUES['momentum'], 'modelzoo_wd': VALUES['weight_decay'], 'modelzoo_print_freq': COUNT,
    'modelzoo_world_size': VALUES['nnodes'], 'modelzoo_rank': VALUES['node_rank'],
})


def rules_of(verb: str) -> Dict[str, Rule]:
    """The rules for the arguments of a verb, by their `dest`."""
    prefix = f'{verb}.'
    own: Dict[str, Rule] = {k[len(prefix):]: rule for k, rule in VALUES.items() if k.startswith(prefix)}
    return {**VALUES, **own}


# --- units ------------------------------------------------------------------------------------------------------------

_FLAGS_OF_UNIT: Dict[str, str] = {
    'seconds': 'rdzv_timeout data_timeout hang_timeout seconds timeout interval',
    'minutes': 'checkpoint_minutes',
    'epochs': 'epochs start_epoch decay_milestones decay_epochs warmup_epochs cooldown_epochs patience_epochs '
              'mixup_off_epoch val_interval patience train_epochs warm_up_epochs',
    'images': 'train_num_samples val_num_samples num_samples min_images images worst maps',
    'images of all processes and one step': 'modelzoo_batch_size',
    'images of one process and step': 'batch_size validation_batch_size train_batch_sizes',
    'pixels': 'img_size train_img_sizes max_side crop_border_pixels',
    'channels, pixels, pixels': 'input_size',
    'share of the image': 'crop_pct',
    'share of the images of each class': 'val',
    'share of the area of the image': 'scale',
    'width divided by height': 'ratio',
    'optimizer steps': 'log_interval recovery_interval',
    'steps in a row': 'max_bad_steps',
    'batches': 'train_batches_per_epoch log_freq grad_accum_steps print_freq',
    'processes': 'nproc',
    'workers of each process': 'workers',
    'machines': 'nnodes world_size',
    'checkpoints': 'checkpoint_hist last',
    'restarts': 'max_restarts',
    'probability': 'hflip vflip color_jitter_prob grayscale_prob gaussian_blur_prob reprob mixup_prob '
                   'train_size_random_mix mixup_switch_prob drop drop_path drop_block',
    'copies of each image': 'aug_repeats aug_splits tta',
    'repeats of the dataset': 'epoch_repeats',
    'classes': 'num_classes topk',
    'places': 'top',
    'channels': 'in_chans',
    'values of a vector': 'kd_student_feature_dim kd_teacher_feature_dim',
    'norm of all gradients, or what --clip-mode says': 'clip_grad',
}
UNITS: Dict[str, str] = {flag: unit for unit, flags in _FLAGS_OF_UNIT.items() for flag in flags.split()}
