"""Run trainings and read what they wrote."""
import csv
import json
from argparse import Namespace
from importlib import resources
from pathlib import Path

import torch
from conftest import run_cli

from seresnet_timm.engine.flags import train_parser, validate_parser
from seresnet_timm.runs.settings import RunSettings, Script


def train(*flags, **kwargs):
    result = run_cli(*flags, **kwargs)
    assert result.returncode == 0, result.stderr
    return result


def bundled_settings(verb: str, *flags, **settings) -> RunSettings:
    """Settings of a run of one process by the bundled script, from flags that leave nothing for the launcher to decide.

    Args:
        verb: 'train' or 'validate'.
        flags: Flags of the script, with its values as they are typed.
        settings: Further settings.
    """
    parser = train_parser() if verb == 'train' else validate_parser()
    args = vars(parser.parse_args([str(f) for f in flags]))
    if verb == 'train':
        settings.setdefault('output', str(Path(args['output'], args['experiment'])))
    return RunSettings(verb, Script(f'{verb}.py'), args, device=args['device'], **settings)


def summary(run: Path) -> list:
    with open(run / 'summary.csv', newline='') as f:
        return list(csv.DictReader(f))


def valid_record(run: Path) -> dict:
    """run.json of a folder, valid by the JSON Schema of the package and by the rules of JSON."""
    from jsonschema import Draft202012Validator

    def refuse(constant):
        raise ValueError(f'{constant} is not JSON')
    schema = json.loads(resources.files('seresnet_timm.runs').joinpath('run.schema.json').read_text())
    Draft202012Validator.check_schema(schema)
    record = json.loads((run / 'run.json').read_text(), parse_constant=refuse)
    Draft202012Validator(schema).validate(record)
    return record


def load(path: Path) -> dict:
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)


def assert_same(whole: Path, resumed: Path) -> None:
    """A run that was stopped and resumed ends as one that was not."""
    a, b = load(whole / 'last.pth.tar'), load(resumed / 'last.pth.tar')
    assert a.keys() == b.keys()
    for key in {'state_dict', 'state_dict_ema'} & set(a):
        assert all(torch.equal(a[key][k], b[key][k]) for k in a[key]), key
    assert a.get('metric') == b.get('metric') and a['saver'] == b['saver']
    assert (whole / 'summary.csv').read_text() == (resumed / 'summary.csv').read_text()
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in resumed.iterdir())


def evaluate_plainly(model, data: Path):
    """top1 and loss in the plainest way: every image by itself."""
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config
    config = resolve_model_data_config(model)
    config['input_size'] = (3, 32, 32)
    transform = create_transform(**config)
    model.eval()
    losses, hits = [], []
    for label, folder in enumerate(sorted((data / 'val').iterdir())):
        for file in folder.iterdir():
            with torch.inference_mode():
                output = model(transform(Image.open(file))[None])
            losses.append(torch.nn.functional.cross_entropy(output, torch.tensor([label])).item())
            hits.append(output.argmax().item() == label)
    return 100 * sum(hits) / len(hits), sum(losses) / len(losses)
