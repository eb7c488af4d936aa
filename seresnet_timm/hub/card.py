"""The model card of a pushed model: what it is, its results, how to use it, how it was trained."""
import html
import os
import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from seresnet_timm.engine.flags import defaults_of
from seresnet_timm.errors import UsageError, printable
from seresnet_timm.hub.client import split_name
from seresnet_timm.hub.errors import redact
from seresnet_timm.hub.names import is_remote
from seresnet_timm.hub.repository import CURVES, plugin_of
from seresnet_timm.hub.upload import Source
from seresnet_timm.runs import report

TEMPLATE = Path(__file__).with_name('card.md.j2')
# flags that name places and machines or choose what is printed; they do not change what is trained
NOT_THE_RECIPE = {
    'data', 'data_dir', 'model', 'output', 'experiment', 'resume', 'device', 'device_modules', 'local_rank', 'rank',
    'world_size', 'distributed', 'prefetcher', 'workers', 'pin_mem', 'log_interval', 'log_wandb', 'wandb_project',
    'wandb_tags', 'wandb_resume_id', 'checkpoint_hist', 'recovery_interval', 'save_images', 'num_classes',
    'no_resume_opt',
}


def make_card(source: Source, repo_id: str, license: str, config: Dict[str, Any], has_curves: bool) -> str:
    """Text of README.md, metadata first.

    Args:
        source: What is pushed.
        repo_id: 'organisation/name'.
        license: Licence identifier of the Hub.
        config: As written to config.json.
        has_curves: True if the repository gets the picture of the curves too.
    """
    architecture = config['architecture']
    plugin = plugin_of(architecture)
    dataset = _dataset_of(source.args)
    card = ModelCard.from_template(
        _metadata(source, repo_id.split('/')[1], license, plugin, dataset),
        template_path=str(TEMPLATE),
        name=repo_id.split('/')[1],
        repo_id=repo_id,
        architecture=architecture,
        plugin=plugin,
        num_classes=config['num_classes'],
        parameters=f'{sum(p.numel() for p in source.model.parameters()):,}',
        size=' x '.join(str(n) for n in config['pretrained_cfg']['input_size'][1:]),
        dataset=_markdown(dataset),
        origin=_markdown(source.origin or ''),
        results=_results(source.run, source, has_curves) if source.run else None,
        settings=_as_yaml(recipe(source.args)),
        command=command(source.run.record) if source.run else None,
        facts=_as_yaml(_facts(source.run.record)) if source.run else None,
    )
    return redact(str(card)).rstrip('\n') + '\n'


def _dataset_of(args: Dict[str, Any]) -> str:
    """Name of the training data: the last part of its path."""
    path = str(args.get('data_dir') or args.get('data') or args.get('dataset') or '')
    return printable(os.path.basename(path.rstrip('/')))


def _metadata(source: Source, name: str, license: str, plugin: Optional[str], dataset: str) -> ModelCardData:
    data = ModelCardData(
        license=license,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *([plugin] if plugin else [])],
    )
    if source.origin and source.origin.startswith('hf-hub:'):
        try:
            data.base_model = split_name(source.origin.split(':', 1)[1])[0]
        except UsageError:
            pass  # a checkpoint from elsewhere may name anything
    row = source.row
    if row and 'eval_top1' in row and dataset:
        data.model_name = name
        data.eval_results = [
            EvalResult(
                task_type='image-classification', dataset_type='imagefolder', dataset_name=dataset,
                metric_type='accuracy', metric_name=label, metric_value=round(row[key], 4))
            for key, label in (('eval_top1', 'Top-1'), ('eval_top5', 'Top-5')) if key in row]
    return data


def _markdown(text: str) -> str:
    """A text from a file that others wrote, so that Markdown and HTML show it and do not interpret it."""
    return re.sub(r'([\\`*\[\]|~])', r'\\\1', html.escape(printable(text), quote=False))


def _results(run: report.Run, source: Source, has_curves: bool) -> Dict[str, Any]:
    table, row = report.table_row(run), source.row or {}
    top1, top5 = (f'{row[k]:.3f}' if k in row else None for k in ('eval_top1', 'eval_top5'))
    return {
        'table': report.format_table([{k: _markdown(v) for k, v in {**table, 'Acc@1': top1 or '-'}.items()}]),
        'top1': top1,
        'top5': top5,
        'weights': source.weights_are,
        'epoch': int(row['epoch']) if row else None,
        'epochs': len(run.rows),
        'curves': CURVES if has_curves else None,
    }


def _facts(record: Dict[str, Any]) -> Dict[str, Any]:
    """Machine and versions of a run."""
    settings = record['settings']
    plan = {k: settings[k] for k in ('device', 'world_size', 'precision', 'global_batch_size')}
    return _plain({'plan': plan, 'versions': {k: v for k, v in record['versions'].items() if v is not None}})


def recipe(args: Dict[str, Any]) -> Dict[str, Any]:
    """Flags of a training that differ from timm's defaults; of paths only the last part."""
    try:
        defaults = defaults_of('train')
    except UsageError:
        defaults = {}
    return {
        k: _plain(v) for k, v in args.items()
        if k in defaults and k not in NOT_THE_RECIPE and v != defaults[k] and v not in (None, '', [], {})}


def _plain(value: Any) -> Any:
    """A value as YAML can hold it, without control characters."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {printable(str(k)): _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return printable(_without_folder(str(value)))


def _without_folder(text: str) -> str:
    """A path without the folders of this machine; other texts as they are."""
    flag, equals, value = text.partition('=') if text.startswith('-') else ('', '', text)
    is_path = os.sep in value and not is_remote(value)
    return flag + equals + (os.path.basename(value.rstrip(os.sep)) if is_path else value)


def _as_yaml(values: Dict[str, Any]) -> Optional[str]:
    # one line a value, however long: a folded line could end the block of code in the card
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=float('inf'))
    return text.rstrip('\n') if values else None


def command(record: Dict[str, Any]) -> Optional[str]:
    """The command line that the user typed, without the folders of the machine; None if the record does not have it.

    Args:
        record: As from `read_record`, which leaves out the internal command of a rank.
    """
    argv: List[str] = [printable(a) for a in record['command']]
    if not any(verb in argv for verb in ('train', 'recipe')):
        return None  # not a command line of this package
    program = 'seresnet-timm' if Path(argv[0]).name in ('seresnet-timm', '__main__.py') else Path(argv[0]).name
    return shlex.join([program, *map(_without_folder, argv[1:])])
