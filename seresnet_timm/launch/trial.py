"""The measurements of `tune`, in a process of their own: `python -m seresnet_timm.launch.trial`

Each line of stdin is a request as JSON: what is measured, for how long, and RunSettings. The answer is a line of stdout
that begins with ANSWER. It ends after a request that fails, and at the end of stdin.
"""
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from seresnet_timm.errors import UsageError, refuse, reworded
from seresnet_timm.runs.settings import RunSettings

MOST_STEPS = 200
FEWEST_STEPS = 3
ANSWER = 'tune: '
Environ = Dict[str, Optional[str]]


def main() -> None:
    from seresnet_timm.launch.explain import explain, is_out_of_memory
    from seresnet_timm.launch.rank import set_up_process
    for line in sys.stdin:
        request = json.loads(line)
        settings = RunSettings.from_json(request['settings'])
        measure = {'step': measure_step, 'loader': measure_loader}[request['what']]
        try:
            set_up_process(settings)
            result = measure(settings, request['seconds'])
        except (RuntimeError, OSError, UsageError) as e:
            sentence = str(e) if isinstance(e, UsageError) else explain(e, settings)
            if sentence is None:
                raise
            result = {'error': sentence, 'out_of_memory': is_out_of_memory(e, settings.device)}
        print(ANSWER + json.dumps(result), flush=True)
        if 'error' in result:
            return


class TrialProcess:
    """The process that measures: one after another, and a new one for what is read when a process starts."""

    def __init__(self) -> None:
        self._process: Optional['subprocess.Popen[str]'] = None
        self._start: Any = None  # what the process was started with
        self._errors: Optional[IO[str]] = None  # its stderr

    def starts_for(self, settings: RunSettings, environ: Environ) -> bool:
        """Whether a new process starts for these settings."""
        return self._process is None or self._start != (environ, settings.internal_format)

    def measure(self, settings: RunSettings, environ: Environ, what: str, seconds: float) -> Dict[str, Any]:
        """The answer of `main` to a request; `environ` as in `tune.Candidate`."""
        if self.starts_for(settings, environ):
            self.close()
            self._errors = tempfile.TemporaryFile('w+')
            python = os.environ.get('PYTHON_EXEC', sys.executable)  # as torchrun starts its processes
            whole = {k: v for k, v in {**os.environ, **environ}.items() if v is not None}
            self._process = subprocess.Popen(
                [python, '-m', 'seresnet_timm.launch.trial'], env=whole, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self._errors)
            self._start = (environ, settings.internal_format)
        process = self._process
        try:
            process.stdin.write(json.dumps({
                'what': what, 'seconds': seconds, 'settings': settings.to_json()}) + '\n')
            process.stdin.flush()
        except BrokenPipeError:  # it has ended, and stdout too
            pass
        for line in process.stdout:
            if line.startswith(ANSWER):
                answer = json.loads(line[len(ANSWER):])
                if 'error' in answer:  # what it leaves in memory could change the next measurement
                    self.close()
                return answer
        process.wait()
        self._errors.seek(0)
        error = last_line(process.returncode, self._errors.read())
        self.close()
        return {'error': error}

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # it ends at the end of its stdin
            self._errors.close()
        self._process = None


def last_line(code: int, errors: str) -> str:
    """What a process that failed said last."""
    if code < 0:
        return f'the process was killed by signal {-code}'
    return next((line for line in reversed(errors.splitlines()) if line.strip()), 'it failed without a message')


def plan_tuning(argv: Sequence[str]) -> Tuple[RunSettings, bool]:
    """Settings of the training that the flags describe, and whether they name a data folder.

    Raises:
        UsageError: A training with these flags would be refused.
    """
    from seresnet_timm.launch.plan import names_data
    settings = settings_to_measure('train', ['--scripts', 'bundled', *argv], has_data=None)
    if settings.nnodes > 1:
        raise UsageError('Measure on one machine: leave --nnodes out.')
    return settings, names_data(settings.args)


def settings_to_measure(verb: str, argv: Sequence[str], has_data: Optional[bool]) -> RunSettings:
    """The settings that `seresnet-timm train` or `validate` would run with, checked as far as there are no data.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.
        has_data: The data folder that the flags name is looked at; else there is none. None: if they name one.

    Raises:
        UsageError: A run with these flags would be refused.
    """
    from seresnet_timm.ascend.setup import set_environment
    from seresnet_timm.launch.plan import make_plan
    set_environment(os.environ)
    plan = make_plan(verb, argv, has_data=has_data)  # refuses what needs no torch, before it is imported
    from seresnet_timm import models  # noqa: F401  (registers itself with timm)
    from seresnet_timm.launch import checks, sample
    problems: List[Any] = [*plan.problems]
    run = checks.Checked(plan.settings, {})
    for check in (checks.check_model, checks.check_precision) if verb == 'train' else ():
        try:
            problems += check(run)
        except UsageError as e:
            problems.append(e)
    with reworded(plan.as_typed):
        refuse(problems or (sample.check_sample(run) if verb == 'train' else ()))
    return plan.settings


def measure_step(settings: RunSettings, seconds: float) -> Dict[str, Any]:
    """Images per second of training steps on one batch of random images.

    The first step, which chooses kernels, is not counted. At least one is, and FEWEST_STEPS where those take less than
    `seconds`.

    Returns:
        `rates`, one for each step after those that warm up; `peak_gib` of the device's memory, None on the CPU.
    """
    from seresnet_timm import device as devices
    gc.collect()  # the network of the measurement before
    step = training_step(settings)
    device = step.device
    devices.empty_cache(device)
    devices.reset_peak_memory(device)

    def timed() -> float:
        devices.synchronize(device)
        start = time.perf_counter()
        step()
        devices.synchronize(device)
        return time.perf_counter() - start
    start = time.perf_counter()

    def passed() -> float:
        return time.perf_counter() - start
    for i in range(MOST_STEPS):  # until kernels are chosen, and the device runs at its full clock
        if i >= 1 and passed() > (seconds / 5 if i >= 2 else seconds):
            break
        timed()
    times: List[float] = []
    while not times or len(times) < MOST_STEPS and passed() < seconds or (
            len(times) < FEWEST_STEPS and sum(times) < seconds):
        times.append(timed())
    memory = devices.peak_memory(device)
    images = settings.args['batch_size']
    return {'rates': [images / t for t in times], 'peak_gib': memory and memory['peak_gib']}


def measure_loader(settings: RunSettings, seconds: float) -> Dict[str, Any]:
    """Images per second of the training loader on the data folder's images, figures of up to five parts of the time."""
    import torch
    from timm.data import resolve_data_config

    from seresnet_timm.data import loaders
    from seresnet_timm.data.fast_jpeg import choose_decoder
    from seresnet_timm.data.loading import inner_loader
    from seresnet_timm.data.position import end_workers
    from seresnet_timm.models.create import create_from_args
    args = settings.namespace()
    args.prefetcher, args.distributed = not args.no_prefetcher, False
    data_config = resolve_data_config(vars(args), model=create_from_args(args, folder=settings.model_folder, meta=True))
    decoder, _ = choose_decoder(args, settings.fast_jpeg)
    loader, _ = loaders.train_loader(loaders.LoaderSetup(
        args, data_config, torch.device('cpu'), None, decoder, settings.class_names, settings.data_timeout))
    batches = without_end(inner_loader(loader))  # what is left to the device is not measured
    # each worker has some batches ready: they were loaded before the clock starts
    for _ in islice(batches, 2 * max(1, args.workers)):
        pass
    many = max(1, args.workers)  # batches that may come at once
    times = [time.perf_counter()]
    while len(times) <= many or times[-1] - times[0] < seconds:
        images = len(next(batches)[0])
        times.append(time.perf_counter())
    end_workers(loader)
    part = max(many, (len(times) - 1) // 5)
    rates = [part * images / (times[i] - times[i - part]) for i in range(part, len(times), part)]
    return {'rates': rates, 'peak_gib': None}


def without_end(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def training_step(settings: RunSettings) -> Callable[[], None]:
    """A step of the bundled train.py on a batch of random images, made by its stages.

    Returns:
        A function that takes the step; its attributes `model`, `optimizer` and `device` are those of the training.
    """
    from timm.data import resolve_data_config
    from timm.utils import random_seed

    from seresnet_timm.engine import model as models
    from seresnet_timm.engine.forward import Forward, set_up_device
    from seresnet_timm.engine.teacher import create_task
    from seresnet_timm.engine.train import create_optimizer
    from seresnet_timm.models import lean_se
    from seresnet_timm.step.backward import backward
    from seresnet_timm.step.bad_steps import BadSteps
    from seresnet_timm.step.loss_scaler import create_loss_scaler
    args = settings.namespace()
    device = set_up_device(args)
    forward = Forward.from_args(args, device)
    scaler, _ = create_loss_scaler(device, args.amp, args.amp_dtype, settings.loss_scale)
    random_seed(args.seed, args.rank)
    model = models.place_model(models.create_model(settings, args, {}), args, forward)
    teacher = teacher_without_weights(settings, args, model, device)
    task = create_task(
        args, model, teacher, resolve_data_config(vars(args), model=model), device, forward.dtype, verbose=False)
    optimizer = create_optimizer(settings, args, task.get_trainable_module())
    if settings.graph:
        reason = models.capture_step(model, args, resolve_data_config(vars(args), model=model), forward)
        if reason is not None:
            raise UsageError(f'cannot be captured here: {reason}')
    models.compile_and_distribute(settings, task, args, device)
    task.get_trainable_module().train()
    # timm's set-up does not look for bad steps
    bad_steps = BadSteps(
        task.get_trainable_module(), optimizer, device, scaler) if settings.fast_step else None
    if bad_steps is not None:
        bad_steps.start_epoch()
    images, target = random_batch(args, model, forward)

    def step() -> None:
        lean_se.set_block_end(settings.block_end)
        with forward.autocast():
            loss = task(images, target)['loss']
        backward(loss, task, optimizer, args, scaler, need_update=True, bad_steps=bad_steps)
        if bad_steps is not None:
            bad_steps.count()
        optimizer.zero_grad()
    step.model, step.optimizer, step.device = model, optimizer, device
    return step


def teacher_without_weights(settings: RunSettings, args: Any, student: Any, device: Any) -> Any:
    """The teacher of a distillation, for its time and memory: all of its weights are 0. None without one."""
    if not getattr(args, 'kd_model_name', None):
        return None
    from seresnet_timm.engine.teacher import load_teacher
    teacher = load_teacher(args.kd_model_name, settings.teacher_folder, {}, student, meta=True)
    teacher.model.to_empty(device=device)
    for values in (*teacher.model.parameters(), *teacher.model.buffers()):
        values.data.zero_()
    return teacher


def random_batch(args: Any, model: Any, forward: Any) -> Any:
    """Random images and labels where the loader would put them; soft labels where mixup makes them."""
    import torch
    from timm.data import resolve_data_config
    from timm.data.mixup import mixup_target

    from seresnet_timm.data.loaders import mixup_active
    size = resolve_data_config(vars(args), model=model)['input_size']
    if getattr(args, 'train_img_sizes', None):
        size = (size[0], max(args.train_img_sizes), max(args.train_img_sizes))
    images = torch.randn(args.batch_size, *size, device=forward.device, dtype=forward.dtype)
    target = torch.randint(0, model.num_classes, (args.batch_size,), device=forward.device)
    if getattr(args, 'mixup', None) is not None and mixup_active(args):
        target = mixup_target(target, model.num_classes, lam=0.5, smoothing=args.smoothing)
    return forward.lay_out(images), target


if __name__ == '__main__':
    main()
