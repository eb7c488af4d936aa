"""The unit of every number that a flag takes, for `seresnet-timm help VERB FLAG`; some have none"""
from typing import Dict

_FLAGS: Dict[str, str] = {
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
    'loader processes of each process': 'workers',
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
UNITS: Dict[str, str] = {flag: unit for unit, flags in _FLAGS.items() for flag in flags.split()}
