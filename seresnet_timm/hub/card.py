"""The model card of a pushed model: what it is, its results, how to use it, how it was trained."""
import os
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml
from huggingface_hub import EvalResult, ModelCardData

from seresnet_timm.engine.flags import train_parser
from seresnet_timm.errors import UsageError
from seresnet_timm.hub.errors import redact
from seresnet_timm.runs import report as results

CURVES = 'curves.png'
# arguments that say where, on which machine and how noisily a run went, not what was trained
NOT_THE_RECIPE = {
    'data', 'data_dir', 'model', 'output', 'experiment', 'resume', 'device', 'device_modules', 'local_rank', 'rank',
    'world_size', 'distributed', 'prefetcher', 'workers', 'pin_mem', 'log_interval', 'log_wandb', 'wandb_project',
    'wandb_tags', 'wandb_resume_id', 'checkpoint_hist', 'recovery_interval', 'save_images', 'num_classes',
    'no_resume_opt',
}

TEMPLATE = '''\
# {name}

{summary}

{results}## Use

```python
{imports}
model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
```

{plugin}{training}'''


def make_card(
        repo_id: str,
        license: str,
        model,
        config: Dict[str, Any],
        plugin: Optional[str],
        run: Optional[Dict[str, Any]] = None,
        row: Optional[Dict[str, float]] = None,
        args: Optional[Dict[str, Any]] = None,
        origin: Optional[str] = None,
        weights: str = '',
        has_curves: bool = False,
) -> str:
    """Text of README.md, metadata on top.

    Args:
        repo_id: 'organisation/name'.
        license: Licence identifier of the Hub.
        model: The model, for its parameter count.
        config: As written to config.json.
        plugin: Python package that has to be imported for the architecture; None for timm's own.
        run: As from `results.read_run`; None where only a file is known.
        row: Row of `summary.csv` of the pushed epoch.
        args: Arguments of the training.
        origin: Model whose weights the training started from.
        weights: What the weights are, e.g. 'moving average of the weights', for the results.
        has_curves: The repository gets the curves too.
    """
    name = repo_id.split('/')[1]
    args = args or {}
    dataset = os.path.basename(str(args.get('data_dir') or args.get('data') or args.get('dataset') or '').rstrip('/'))
    data = ModelCardData(
        license=license,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *([plugin] if plugin else [])],
    )
    if origin and origin.startswith('hf-hub:'):
        data.base_model = origin.split(':', 1)[1].split('@')[0]
    if row and 'eval_top1' in row and dataset:
        data.model_name = name
        data.eval_results = [
            EvalResult(
                task_type='image-classification', dataset_type='imagefolder', dataset_name=dataset,
                metric_type='accuracy', metric_name=label, metric_value=round(row[key], 4))
            for key, label in (('eval_top1', 'Top-1'), ('eval_top5', 'Top-5')) if key in row]
    size = ' x '.join(map(str, config['pretrained_cfg']['input_size'][1:]))
    parameters = sum(p.numel() for p in model.parameters())
    trained = f', trained on {dataset}' if dataset else ''
    started = f', from the weights of {origin}' if origin else ''
    summary = (f'`{config["architecture"]}` for {config["num_classes"]} classes ({parameters:,} parameters, images of '
               f'{size}){trained}{started}.')
    imports = f'import {plugin}  # registers {config["architecture"]} with timm\n' if plugin else ''
    first = f'The architecture is not in timm itself: `import {plugin}` comes first.\n\n' if plugin else ''
    body = TEMPLATE.format(
        name=name,
        summary=summary,
        results=_results(run, row, weights, has_curves) if run else '',
        imports=f'{imports}import timm',
        repo_id=repo_id,
        plugin=first,
        training=_training(run, args),
    )
    return f'---\n{data.to_yaml()}\n---\n{redact(body)}'


def _results(run: Dict[str, Any], row: Optional[Dict[str, float]], weights: str, has_curves: bool) -> str:
    table = results.table_row(run)
    top1 = row.get('eval_top1') if row else None
    table['Acc@1'] = f'{top1:.3f}' if top1 is not None else '-'
    parts = ['## Results', results.format_table([table])]
    if row and top1 is not None:
        top5 = f', top-5 {row["eval_top5"]:.3f} %' if 'eval_top5' in row else ''
        of = f' of the {weights}' if weights else ''
        parts.append(f'Top-1 {top1:.3f} %{top5}{of} on the validation images, after epoch {int(row["epoch"])} '
                     f'(counted from 0; {len(run["rows"])} in all). FPS: training images/s of all devices.')
    else:
        parts.append('These weights were not evaluated in the training.')
    if has_curves:
        parts.append(f'![Loss, top-1, learning rate and images/s over epochs]({CURVES})')
    return '\n\n'.join(parts) + '\n\n'


def _training(run: Optional[Dict[str, Any]], args: Dict[str, Any]) -> str:
    parts = []
    settings = recipe(args)
    if settings:
        parts += ['## Training', f"Settings that are not timm's defaults:\n\n```yaml\n{as_yaml(settings)}```"]
    if run:
        record = run['record']
        plan, versions = record['plan'], record['versions']
        facts = dict(
            plan={k: plan[k] for k in ('device', 'world_size', 'precision', 'global_batch_size') if k in plan},
            versions=versions)
        if not parts:
            parts.append('## Training')
        parts += [
            f'Command:\n\n```bash\n{command(record)}\n```' if command(record) else '',
            f'```yaml\n{as_yaml(facts)}```',
        ]
    return '\n\n'.join(p for p in parts if p) + '\n' if parts else ''


def recipe(args: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of a training that differ from timm's defaults; of paths only the last part."""
    try:
        defaults = vars(train_parser().parse_args([]))
    except UsageError:
        defaults = {}
    return {
        k: _plain(v) for k, v in args.items()
        if k in defaults and k not in NOT_THE_RECIPE and v != defaults[k] and v not in (None, '', [], {})}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return _without_folder(value)
    return value if isinstance(value, (bool, int, float)) else str(value)


def _without_folder(text: str) -> str:
    """A path without the folders of this machine; other texts as they are."""
    flag, equals, value = text.partition('=') if text.startswith('-') else ('', '', text)
    is_path = os.sep in value and not value.startswith('hf-hub:')
    return flag + equals + (os.path.basename(value.rstrip(os.sep)) if is_path else value)


def as_yaml(values: Dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def command(record: Dict[str, Any]) -> Optional[str]:
    """The command line of a run without the folders of its machine; None where ranks did not know it."""
    argv: List[str] = [str(a) for a in record.get('command') or []]
    if not any(verb in argv for verb in ('train', 'recipe')):
        return None  # a worker's, which names a job file
    program = 'seresnet-timm' if Path(argv[0]).name in ('seresnet-timm', '__main__.py') else Path(argv[0]).name
    return shlex.join([program, *map(_without_folder, argv[1:])])
