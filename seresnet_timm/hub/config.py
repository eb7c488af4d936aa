"""config.json of a model on the Hub, in timm's format."""
import json
from pathlib import Path
from typing import Any, Dict

from timm.data.loader import adapt_to_chs
from timm.models._hub import save_config_for_hf

from seresnet_timm.hub.errors import redact
from seresnet_timm.hub.repository import plugin_of
from seresnet_timm.hub.upload import Source

# of ModelInfo: how the images are prepared
PREPROCESSING = ('in_chans', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
# entries of a pretrained configuration that describe other weights than those that are pushed
PROVENANCE = (
    'tag', 'url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'license', 'description', 'origin_url',
    'paper_name', 'paper_ids', 'notes', 'label_names', 'label_descriptions')


def make_config(source: Source, license: str, path: Path) -> Dict[str, Any]:
    """Write config.json as timm reads it: the model as trained, without what describes other weights."""
    info = source.info
    data_config = {k: getattr(info, k) for k in PREPROCESSING if getattr(info, k) is not None}
    for key in ('mean', 'std'):
        if key in data_config and info.in_chans is not None:
            data_config[key] = adapt_to_chs(tuple(data_config[key]), info.in_chans)  # as timm's loader
    model_config: Dict[str, Any] = {'label_names': info.class_names} if info.class_names else {}
    save_config_for_hf(source.model, str(path), model_config=model_config, data_config=data_config)
    config = json.loads(path.read_text())
    pretrained = {k: v for k, v in config['pretrained_cfg'].items() if k not in PROVENANCE}
    config['pretrained_cfg'] = dict(pretrained, license=license)
    plugin = plugin_of(config['architecture'])
    if plugin:
        config['requires'] = f'import {plugin}'
    path.write_text(redact(json.dumps(config, indent=2)) + '\n')
    return config
