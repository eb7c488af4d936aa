"""config.json of a model on the Hub, in timm's format."""
import json
from pathlib import Path
from typing import Any, Dict

from timm.models._hub import save_config_for_hf

from seresnet_timm.hub.errors import redact
from seresnet_timm.hub.repository import plugin_of
from seresnet_timm.hub.upload import Source

# flags of a training that decide how its images are prepared
DATA_ARGS = ('in_chans', 'input_size', 'img_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
# entries of a pretrained configuration that describe other weights than those that are pushed
PROVENANCE = (
    'tag', 'url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'license', 'description', 'origin_url',
    'paper_name', 'paper_ids', 'notes')


def make_config(source: Source, license: str, path: Path) -> Dict[str, Any]:
    """Write config.json as timm reads it: the model as trained, without what describes other weights."""
    data_config = {k: source.args[k] for k in DATA_ARGS if source.args.get(k) is not None}
    model_config: Dict[str, Any] = {'label_names': source.labels} if source.labels else {}
    save_config_for_hf(source.model, str(path), model_config=model_config, data_config=data_config)
    config = json.loads(path.read_text())
    pretrained = {k: v for k, v in config['pretrained_cfg'].items() if k not in PROVENANCE}
    config['pretrained_cfg'] = dict(pretrained, license=license)
    plugin = plugin_of(config['architecture'])
    if plugin:
        config['requires'] = f'import {plugin}'
    path.write_text(redact(json.dumps(config, indent=2)) + '\n')
    return config
